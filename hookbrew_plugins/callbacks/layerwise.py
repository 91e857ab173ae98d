"""Layer-wise training: each layer of the student learns from what the teacher's own layer is given."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import attrs
from torch import Tensor, nn

from hookbrew.errors import CallbackError
from hookbrew.loop import State
from hookbrew.plugin import options
from hookbrew_plugins.callbacks.layers import Given, Pair, hidden, mistake, paired, replaced

NAME = "layerwise"
TRAINED = "layers are given other hidden states, so that the student is trained in another way; that is what it is for"


@options
class Layerwise:
    """Gives each of the student's layers, in training, the hidden states that the teacher's layer is given.

    One forward of each model then trains all layers, each by itself: with a loss on the output of each, as hidden_mse
    between the same layers, the gradient of a layer is that of its own loss alone. Nothing goes back from layer to
    layer, nor to what is below the first of them; evaluations are of the plain student. The two models are of one
    width, and read the same tokens.
    """

    exempt: ClassVar[dict[str, str]] = {"weights_untouched": TRAINED, "state_untouched": TRAINED}

    student: str
    """The layers that are trained so, as bert.encoder.layer[*]."""
    teacher: str
    """Those whose hidden states they are given, one for one: bert.encoder.layer[1,3,5]."""

    def build(self) -> Feeder:
        """The callback."""
        return Feeder(self)


@attrs.define(eq=False)
class Feeder:
    """Takes from the teacher's layers what they are given, and puts it into the student's."""

    _options: Layerwise
    _stack: ExitStack = attrs.field(factory=ExitStack)
    """What takes the hooks off."""
    _given: dict[int, Tensor] = attrs.field(factory=dict)
    """What the teacher's layers were given for this batch, by their places."""

    def run_start(self, state: State) -> None:
        """Put hooks on both models; raises ConfigError and SelectorError for layers that do not fit."""
        pairs = paired(NAME, state, self._options.student, self._options.teacher)
        if len(pairs[0].teacher) > 1:
            many = sum(len(pair.teacher) for pair in pairs)
            raise mistake(NAME, f"the student has {len(pairs)} layers and the teacher {many}; name one for each")
        state.partial = True
        for place, pair in enumerate(pairs):
            for layer, hook in ((pair.teacher[0], self._take), (pair.student, self._put)):
                call = Hook(hook, place, pair)
                self._stack.callback(layer.module.register_forward_pre_hook(call, with_kwargs=True).remove)

    def batch_ready(self, state: State) -> None:
        """Nothing of the batch before is left."""
        self._given.clear()

    def backward_end(self, state: State) -> None:
        """Not sooner: where layers are computed again in backward, they are given the same again."""
        self._given.clear()

    def close(self, state: State) -> None:
        """Take the hooks off."""
        self._stack.close()
        self._given.clear()

    def _take(self, place: int, pair: Pair, given: Given) -> None:
        self._given[place] = hidden(pair.teacher[0], given)[1].detach()

    def _put(self, place: int, pair: Pair, given: Given) -> Given | None:
        student, (teacher,) = pair.student, pair.teacher
        if not student.module.training:
            return None
        name, own = hidden(student, given)
        theirs = self._given.get(place)
        if theirs is None:
            raise CallbackError(
                f"callback 'layerwise': the teacher's '{teacher.path}' was not run on this batch: a loss has to "
                "compare with that layer or a later one, or train.stop_teacher be false; a teacher may not remember"
            )
        if theirs.shape != own.shape:
            raise CallbackError(
                f"callback 'layerwise': the teacher's '{teacher.path}' is given hidden states {tuple(theirs.shape)}, "
                f"and the student's '{student.path}' {tuple(own.shape)}; they must be the same"
            )
        return replaced(given, name, theirs.to(own.dtype))


class Hook:
    """One of the two hooks of a pair; on a copy of a model it does nothing."""

    def __init__(self, call: Any, place: int, pair: Pair) -> None:
        self._call, self._place, self._pair = call, place, pair

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given | None:
        """Give what the module is called with to the callback."""
        found: Given | None = self._call(self._place, self._pair, (args, kwargs))
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return inert

    def __reduce__(self) -> Any:
        return "inert"


def inert(*_: Any) -> None:
    """What copies of a model have in place of the hook."""
