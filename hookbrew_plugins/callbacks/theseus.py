"""BERT-of-Theseus: a student that takes the place of its teacher layer by layer, while it is trained."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import attrs
import torch
from torch import nn

from hookbrew.config import Weight
from hookbrew.loop import State, mix
from hookbrew.plugin import fraction, options
from hookbrew.taps import synced, unwrap
from hookbrew_plugins.callbacks.layers import Pair, mistake, namesakes, paired
from hookbrew_plugins.callbacks.unit import Unit, kinds

NAME = "theseus"
TRAINED = "other layers run, so that the student is trained in another way; that is what it is for"


def weighed(value: Any) -> Any:
    """A number as what a configuration makes of it."""
    return Weight(base=float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value


def share(_: Any, attribute: attrs.Attribute[Any], value: Weight) -> None:
    """A validator of attrs: raises ValueError for a constant that is no share."""
    if value.schedule is None and not 0 <= value.base <= 1:
        raise ValueError(f"'{attribute.name}' must be from 0 to 1: {value.base}")


@options
class Theseus:
    """Lets layers of the teacher stand in for the student's, less and less (Xu, Zhou, Ge, Wei, Zhou 2020).

    Each layer of the student has as many of the teacher's as its predecessors. In each step of training it runs with
    probability `rate`, drawn for each layer, and its predecessors else: they are not trained, but gradients go through
    them to the layers below. From `until` on, and in every evaluation, the student runs alone. No other loss is needed
    than that of the task, as `ce`; the teacher is then not run by itself.

    The student is one that is made of its teacher: embeddings and head must fit the predecessors. Its class, modules
    and names of weights never change, so that what is saved on the way is a plain student, and one is left at the end.
    What a loss reads inside a layer of the student is not there while predecessors run. Draws depend on the run's seed
    and the step alone: all batches of a step and all processes have the same.
    """

    exempt: ClassVar[dict[str, str]] = dict.fromkeys(
        ("weights_untouched", "models_untouched", "state_untouched"), TRAINED
    )

    student: str
    """The layers that take over, as bert.encoder.layer[*]."""
    teacher: str
    """The layers that they replace, in order: as many, or a multiple."""
    rate: Weight = attrs.field(default=Weight(base=0.5), converter=weighed, validator=share)
    """The probability that a layer of the student runs: a number, or a table with a schedule over the time up to
    `until`, { type = "linear_growth", start = 0.3 }; values above 1 count as 1."""
    until: float = fraction(0.5)
    """The part of the training in which layers are replaced; the rest is the student's alone."""
    freeze: bool = True
    """Whether all else of the student, embeddings and head, stays as it is up to `until`, as in the paper; at least
    one layer of the student runs in each step then."""
    dropout: bool = False
    """Whether predecessors drop out in training, as in the authors' code; by default they are as the teacher is."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError where no layer would ever be trained in company."""
        if self.until == 0:
            raise ValueError("'until' must be above 0: no layer would ever be replaced")
        if self.freeze and self.rate == Weight(base=0.0):
            raise ValueError("'rate' must be above 0 where all else is frozen: nothing would be trained")

    def build(self) -> Ship:
        """The callback."""
        return Ship(self)


@attrs.define(eq=False)
class Ship:
    """Draws at the start of each step which layers are the student's own."""

    teaches: ClassVar[bool] = True

    _options: Theseus
    _seed: int | None = None
    """What draws go by; kept for runs that are resumed."""
    _units: list[Unit] = attrs.field(factory=list)
    _outside: list[nn.Parameter] = attrs.field(factory=list)
    """What of the student is trained, and in none of its layers."""
    _guests: list[nn.Parameter] = attrs.field(factory=list)
    """What of the predecessors is trained elsewhere."""

    def run_start(self, state: State) -> None:
        """Put the units in; raises ConfigError and SelectorError for models that do not fit."""
        pairs = paired(NAME, state, self._options.student, self._options.teacher)
        require_fit(pairs, state)
        if self._seed is None:
            self._seed = state.ranks.first(torch.initial_seed)
        inside = {id(p) for pair in pairs for p in pair.student.module.parameters()}
        if self._options.freeze:
            named = [(n, p) for n, p in unwrap(state.student).named_parameters() if id(p) not in inside]
            self._outside = [p for _, p in named if p.requires_grad]
            if not state.step:
                require_same(named, state)
        state.partial = True
        guests = dict.fromkeys(p for pair in pairs for layer in pair.teacher for p in layer.module.parameters())
        self._guests = [p for p in guests if p.requires_grad]
        turn(self._guests, on=False)
        self._units = [Unit(pair, dropout=self._options.dropout) for pair in pairs]
        for unit in self._units:
            unit.place()

    def step_start(self, state: State) -> None:
        """Draw, and freeze what is around the layers."""
        assert self._seed is not None
        rate = self._rate(state)
        numbers = random.Random(mix(self._seed, NAME, state.step))
        draws = [numbers.random() < rate for _ in self._units]
        if self._options.freeze and not any(draws):
            draws[numbers.randrange(len(draws))] = True
        for unit, own in zip(self._units, draws, strict=True):
            unit.own = own
        if self._replacing(state.step, state.total_steps):
            turn(self._outside, on=False)

    def step_end(self, state: State) -> None:
        """Thaw after the last step with replaced layers: what else freezes does so anew at the start of a step."""
        steps = state.step, state.step + 1
        if [self._replacing(step, state.total_steps) for step in steps] == [True, False]:
            turn(self._outside, on=True)

    def log(self, state: State) -> None:
        """The probability of this step."""
        state.record["theseus/rate"] = self._rate(state)

    def close(self, state: State) -> None:
        """Leave a plain student, and a teacher as it was."""
        for unit in reversed(self._units):
            unit.lift()
        turn(self._outside, on=True)
        turn(self._guests, on=True)
        self._units, self._outside, self._guests = [], [], []

    def state_dict(self) -> dict[str, Any]:
        """What draws go by."""
        return {"seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw as before."""
        self._seed = state["seed"]

    def _replacing(self, step: int, total: int) -> bool:
        return (step - 1) / total < self._options.until

    def _rate(self, state: State) -> float:
        if not self._replacing(state.step, state.total_steps):
            return 1.0
        schedule, base = self._options.rate.schedule, self._options.rate.base
        factor = 1.0 if schedule is None else schedule.options.build()(state.progress / self._options.until)
        return min(1.0, max(0.0, base * factor))


def turn(parameters: list[nn.Parameter], *, on: bool) -> None:
    """Train some parameters, or do not."""
    for parameter in parameters:
        parameter.requires_grad_(on)


def require_fit(pairs: list[Pair], state: State) -> None:
    """Raise ConfigError for layers that cannot stand in for each other, and for a wrapper that waits for all."""
    ours = {id(p) for p in state.student.parameters()}
    for pair in pairs:
        for layer in pair.teacher:
            if not ours.isdisjoint(map(id, layer.module.parameters())):
                raise mistake(NAME, f"the student shares weights with '{layer.path}' of the teacher; copy them")
            if (one := kinds(pair.student)) != (other := kinds(layer)):
                message = (
                    f"'{layer.path}' of the teacher is given another mask than '{pair.student.path}' of the student"
                )
                raise mistake(NAME, f"{message}: {other} and {one}; pair layers of one kind")
    wrapped = (m for m in state.student.modules() if isinstance(m, nn.parallel.DistributedDataParallel))
    if synced(state.student) and not all(m.find_unused_parameters and not m.static_graph for m in wrapped):
        message = (
            "steps leave layers of the student out, and its DistributedDataParallel waits for all of them; wrap it"
        )
        raise mistake(NAME, f"{message} with find_unused_parameters=True")


def require_same(named: list[tuple[str, nn.Parameter]], state: State) -> None:
    """Raise ConfigError for what would be frozen and is not the teacher's, into whose layers it feeds."""
    assert state.teacher is not None
    for name, parameter in named:
        if not any(p.shape == parameter.shape and torch.equal(p, parameter) for p in namesakes(state.teacher, name)):
            message = f"'{name}' of the student is not the teacher's, and would stay as it is; make the student of its"
            raise mistake(NAME, f"{message} teacher, or write freeze = false")
