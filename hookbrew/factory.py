"""Factories: `"module:attribute"` with arguments becomes an object."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import torch

from hookbrew import words
from hookbrew.config import Component, Factory, Loss, Optimizer
from hookbrew.errors import ConfigError, FactoryError, HookbrewError, Problem
from hookbrew.objective import Made
from hookbrew.plugin.blame import outside

__all__ = ["build", "called", "fitted", "importing", "optimizer", "projecting"]
"""Those of `build` are for edits of plugins, too."""


@contextmanager
def importing(folders: Iterable[Path]) -> Iterator[None]:
    """Modules in these folders can be imported inside; sys.path is as before outside."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def build(factory: Factory, path: str, *first: Any) -> Any:
    """Call a factory; tables among its arguments that have a `factory` key are built first.

    first: what it is given besides, by position.

    path: its place in the configuration, for messages. Raises ConfigError when the name cannot be
    imported or the arguments do not fit, or when it fails for want of a file or a package. Any other
    exception is the user's code's own, and gets a note.
    """
    try:
        return called(factory.factory, factory.arguments, *first)
    except HookbrewError as error:
        raise ConfigError([Problem(f"{path}.factory", str(error))]) from error
    except (OSError, ImportError) as error:
        reason = " ".join(str(error).split())
        place = f" ({outside(error)})" if isinstance(error, ImportError) else ""
        message = f"{factory.factory} failed: {type(error).__name__}: {reason}{place}"
        raise ConfigError([Problem(f"{path}.factory", message)]) from error
    except Exception as error:
        error.add_note(f"raised by {path}.factory = {factory.factory!r}")
        raise


def called(name: str, arguments: Mapping[str, Any], *first: Any) -> Any:
    """The result of a callable on arguments, nested factories first."""
    function = imported(name)
    return fitted(function, name, {key: value_of(value) for key, value in arguments.items()}, *first)


def fitted(function: Callable[..., Any], name: str, arguments: Mapping[str, Any], *first: Any) -> Any:
    """Call a function; raises FactoryError with the nearest name when the arguments do not fit its parameters.

    Asked by calling: the signatures of some classes (configurations of transformers) leave out what they take.
    """
    try:
        return function(*first, **arguments)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # from inside the function, not about its arguments
        named = inspect.signature(function).parameters
        unknown = [key for key in arguments if key not in named]
        if unknown and "unexpected keyword" in str(error):
            raise FactoryError(f"{name} takes no argument {unknown[0]!r}; {words.hint(unknown[0], named)}") from error
        raise FactoryError(f"{name}: {error}") from error


def value_of(value: Any) -> Any:
    """An argument with the factories inside it built."""
    if isinstance(value, Mapping):
        if isinstance(value.get("factory"), str):
            return called(value["factory"], {k: v for k, v in value.items() if k != "factory"})
        return {key: value_of(item) for key, item in value.items()}
    return [value_of(item) for item in value] if isinstance(value, list) else value


def imported(name: str) -> Callable[..., Any]:
    """The object behind `module:attribute`; raises FactoryError with the nearest name."""
    home, _, attribute = name.partition(":")
    try:
        found: Any = import_module(home)
    except ModuleNotFoundError as error:
        if error.name is None or not (home + ".").startswith(error.name + "."):
            raise  # the module was found, and needs something that is not
        raise FactoryError(
            f'no module {error.name!r}; install it, or name the folder it is in with pythonpath = ["."]'
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            where = home if found is sys.modules[home] else getattr(found, "__name__", home)
            raise FactoryError(f"{where} has no {part!r}; {words.nearby(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise FactoryError(f"{name} is a {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]  # callable, as just checked


def projecting(losses: Sequence[Loss], path: str) -> list[Loss]:
    """The losses with a component in place of each projection by factory; path: where the list of them stands."""

    def replaced(index: int, loss: Loss) -> Loss:
        if not isinstance(loss.projection, Factory):
            return loss
        options = Made(partial(widened, loss.projection, f"{path}[{index}].projection"), loss.projection.factory)
        return attrs.evolve(loss, projection=Component(type="factory", options=options))

    return [replaced(index, loss) for index, loss in enumerate(losses)]


def widened(projection: Factory, path: str, *, student: int, teacher: int) -> Any:
    """What the factory of a projection makes for the two measured widths."""
    arguments = {**projection.arguments, "student": student, "teacher": teacher}
    return build(attrs.evolve(projection, arguments=arguments), path)


def optimizer(config: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a configuration, fused where torch has a fused one; of sharded parameters, for Adam and AdamW.

    Raises ConfigError for an unknown name, an unknown argument, or a value that it refuses.
    """
    trained = list(parameters)
    try:
        cls = imported(config.type) if ":" in config.type else by_name(config.type)
        arguments = {"params": trained, "lr": config.lr, **config.arguments}
        free = "fused" in inspect.signature(cls).parameters and not {"fused", "foreach"} & set(arguments)
        able = not hasattr(trained[0], "device_mesh") or config.type in ("Adam", "AdamW")
        if free and able and trained[0].device.type in ("cpu", "cuda"):
            arguments["fused"] = True
        made: torch.optim.Optimizer = fitted(cls, config.type, arguments)
    except FactoryError as error:
        raise ConfigError([Problem("optimizer", str(error))]) from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError([Problem("optimizer", f"{config.type}: {error}")]) from error
    return made


def by_name(name: str) -> Callable[..., torch.optim.Optimizer]:
    """A class of torch.optim."""
    known = [n for n, v in vars(torch.optim).items() if isinstance(v, type) and issubclass(v, torch.optim.Optimizer)]
    if name not in known:
        raise FactoryError(f"torch.optim has no {name!r}; {words.hint(name, [n for n in known if n != 'Optimizer'])}")
    return getattr(torch.optim, name)  # type: ignore[no-any-return]  # an optimizer class, as just checked
