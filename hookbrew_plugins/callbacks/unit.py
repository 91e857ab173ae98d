"""A layer of a student that runs layers of the teacher in its place, in some steps of the training."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew.errors import CallbackError
from hookbrew_plugins.callbacks.layers import Given, Layer, Pair, apart, hidden, replaced

KINDS = ("attention_type", "is_sliding", "is_cross_attention")
"""What layers of transformers say of themselves that decides which mask and positions they are given."""


class Unit:
    """Stands as `forward` in a layer of the student, so that its class, its modules and its names stay what they are.

    In evaluation mode it is the layer's own forward; in training too, while `own` is true. A copy of the layer, and
    what is loaded of a pickled one, has its own forward alone.
    """

    def __init__(self, pair: Pair, *, dropout: bool) -> None:
        """dropout: whether the teacher's layers are in training mode when they stand in, those with statistics not."""
        self._layer, self._before = pair.student, pair.teacher
        self._forward = pair.student.module.forward
        every = [module for layer in pair.teacher for module in layer.module.modules()] if dropout else []
        self._noisy = [module for module in every if not hasattr(module, "running_mean")]
        self._tried = False
        self.own = True
        functools.update_wrapper(self, self._forward)  # whoever reads the signature sees the layer's own

    def place(self) -> None:
        """Stand in the layer."""
        self._known = vars(self._layer.module).get("forward")
        self._layer.module.forward = self  # in this one object only

    def lift(self) -> None:
        """Leave the layer as it was before."""
        module = self._layer.module
        if vars(module).get("forward") is self:
            del module.forward
            if self._known is not None:
                module.forward = self._known  # of whoever came before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives, or the teacher's layers one after the other; raises CallbackError if they cannot."""
        if not self._layer.module.training:
            return self._forward(*args, **kwargs)
        if not self._tried:
            self._try((args, kwargs))
            self._tried = True
        return self._forward(*args, **kwargs) if self.own else self._stand((args, kwargs))

    def _stand(self, given: Given) -> Any:
        """What the last of the teacher's layers gives."""
        name, _ = hidden(self._layer, given)
        output = None
        with self._drawing():
            for place, layer in enumerate(self._before):
                if place:
                    given = replaced(given, name, passed(self._before[place - 1], output))
                args, kwargs = apart(given)
                output = layer.module(*args, **kwargs)
        return output

    def _try(self, given: Given) -> None:
        """Find out in the first step whether the teacher's layers can stand in, before a draw decides so."""
        noisy, self._noisy = self._noisy, []  # nothing is drawn
        try:
            with torch.no_grad():
                self._stand(given)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            shape = tuple(hidden(self._layer, given)[1].shape)
            told = " ".join(str(error).split())
            paths = ", ".join(layer.path for layer in self._before)
            raise CallbackError(
                f"callback 'theseus': the teacher's {paths} cannot stand in for the student's '{self._layer.path}', "
                f"which is given hidden states {shape}: {told}"
            ) from error
        finally:
            self._noisy = noisy

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """The teacher's layers drop out inside, if they shall."""
        for module in self._noisy:
            module.training = True
        try:
            yield
        finally:
            for module in self._noisy:
                module.training = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._layer.module))
        return self if copied is None else plain(copied)

    def __reduce__(self) -> Any:
        return plain, (self._layer.module,)


def plain(module: nn.Module) -> MethodType:
    """A module's own forward."""
    return MethodType(type(module).forward, module)


def passed(layer: Layer, output: Any) -> Tensor:
    """The hidden states in what a layer gives; raises CallbackError where the next one would need more of it."""
    if isinstance(output, Tensor):
        return output
    first, *rest = output if isinstance(output, tuple | list) and len(output) else (None,)
    if not isinstance(first, Tensor) or any(isinstance(part, Tensor) and part.is_floating_point() for part in rest):
        raise CallbackError(
            f"callback 'theseus': layer '{layer.path}' of the teacher gives more than hidden states to the next one, "
            "as the position bias of T5; one of its layers can stand in for one of the student's, not several"
        )
    return first


def kinds(layer: Layer) -> dict[str, Any]:
    """What a layer says of which mask and positions it needs."""
    return {name: getattr(layer.module, name) for name in KINDS if hasattr(layer.module, name)}
