"""A kit: the properties that every component of one kind has, checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import attrs
import torch

from hookbrew import words


class Subject(Protocol):
    """A component, built and given inputs, in the form in which the properties of its kind look at it."""

    @property
    def offers(self) -> frozenset[str]:
        """What it has that a property may need: `teacher`, `temperature`."""


S = TypeVar("S", bound=Subject)


@attrs.frozen
class Property(Generic[S]):
    """Something that holds for every component of a kind."""

    name: str
    law: str
    """What holds, in a sentence."""
    needs: frozenset[str]
    """What a subject must offer for the property to say anything about it."""
    check: Callable[[S], None]
    """Raises AssertionError if it does not hold."""


def law(*needs: str) -> Callable[[Callable[[S], None]], Property[S]]:
    """Make a function into the property of its name; its docstring is the law."""

    def make(check: Callable[[S], None]) -> Property[S]:
        return Property(check.__name__, check.__doc__ or "", frozenset(needs), check)

    return make


def require(holds: bool, message: str) -> None:
    """Raise AssertionError with the message unless something holds; unlike `assert`, under `python -O` too."""
    if not holds:
        raise AssertionError(message)


@attrs.frozen
class Check:
    """One property of one component; call it, and it raises AssertionError if the property does not hold."""

    component: str
    name: str
    run: Callable[[], None]
    exempt: str = ""
    """Why the component need not have the property; empty if it must."""

    def __call__(self) -> None:
        """Run under fixed random numbers; whatever the component raises counts as a failure."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                self.run()
            except Exception as error:
                said = str(error) if isinstance(error, AssertionError) else f"raised {type(error).__name__}: {error}"
                raise AssertionError(f"{self.component} fails {self.name}: {said}") from error


@attrs.frozen
class Kit(Generic[S]):
    """The properties of one kind of component.

    `kit(options)` raises one AssertionError that names all that fail; `kit.each(options, ...)` is a decorator
    that makes one pytest test of each property. A component opts out of a property by its name, with a
    reason: in `exempt`, or in a class variable `exempt` of its options class.
    """

    kind: str
    subjects: Callable[..., Iterable[S]]
    """options, and what else a call of the kit gives, to the subjects on which the properties must hold."""
    properties: tuple[Property[S], ...]
    shared: Callable[[], Mapping[str, Any]] = dict
    """What the subjects of one component are given besides, to keep what several properties need."""

    def __call__(self, options: Any, *, exempt: Mapping[str, str] | None = None, **given: Any) -> None:
        """Raise AssertionError unless all properties hold for a component with these options."""
        failed = self.failures(options, exempt=exempt, **given)
        require(not failed, "\n".join(failed.values()))

    def failures(self, options: Any, *, exempt: Mapping[str, str] | None = None, **given: Any) -> dict[str, str]:
        """The properties that do not hold, with what is wrong; exempt ones left out."""
        found = dict[str, str]()
        for check in self.checks(options, exempt=exempt, **given):
            try:
                if not check.exempt:
                    check()
            except AssertionError as error:
                found[check.name] = str(error)
        return found

    def checks(self, options: Any, *, exempt: Mapping[str, str] | None = None, **given: Any) -> tuple[Check, ...]:
        """One check for each property that can be asked of this component, exempt ones included.

        Raises AssertionError when the component cannot be built, or an exemption names no property or no reason.
        """
        name, given = type(options).__name__, {**given, **self.shared()}
        spared = {**getattr(options, "exempt", {}), **(exempt or {})}
        self._require_known(name, spared)
        offered = frozenset[str]().union(*(subject.offers for subject in self._built(name, options, given)))
        return tuple(
            Check(name, prop.name, partial(self._hold, prop, options, given), spared.get(prop.name, ""))
            for prop in self.properties
            if prop.needs <= offered
        )

    def each(
        self, *options: Any, exempt: Mapping[str, str] | None = None, **given: Any
    ) -> Callable[[Callable[..., None]], Any]:
        """A decorator: the test gets each property of each component as `check` and calls it. Needs pytest.

            @check_loss.each(KDCE(temperature=2.0))
            def test_kd_ce(check):
                check()

        A property that a component is exempt from is skipped, with its reason.
        """
        import pytest  # an optional dependency, of tests alone

        checks = [check for one in options for check in self.checks(one, exempt=exempt, **given)]
        parameters = [
            pytest.param(
                check,
                id=f"{check.component}-{check.name}",
                marks=[pytest.mark.skip(reason=check.exempt)] if check.exempt else [],
            )
            for check in checks
        ]
        return pytest.mark.parametrize("check", parameters)

    def _built(self, name: str, options: Any, given: Mapping[str, Any]) -> tuple[S, ...]:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return tuple(self.subjects(options, **given))
        except Exception as error:
            said = str(error) if isinstance(error, AssertionError) else f"raised {type(error).__name__}: {error}"
            raise AssertionError(f"{name} is no {self.kind}: {said}") from error

    def _require_known(self, name: str, spared: Mapping[str, str]) -> None:
        known = [prop.name for prop in self.properties]
        for prop, reason in spared.items():
            require(prop in known, f"{name} is exempt from {prop!r}, which is no property; {words.hint(prop, known)}")
            require(bool(reason.strip()), f"{name} is exempt from {prop!r} without a reason")

    def _hold(self, prop: Property[S], options: Any, given: Mapping[str, Any]) -> None:
        for subject in self.subjects(options, **given):  # built anew: no property sees what another one left behind
            if prop.needs <= subject.offers:
                prop.check(subject)
