"""A trial: one loss with random inputs of one shape.

B batch, L tokens, D the last dimension: features, or classes C. Tensors of an attention have heads, H, before tokens.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew import words
from hookbrew.errors import ObjectiveError
from hookbrew.objective.align import count
from hookbrew.objective.attended import ATTENDED, places
from hookbrew.objective.source import Counts
from hookbrew.testing.kit import require

Inputs = dict[str, Tensor]
ROLES = ("student", "teacher", "mask", "labels", "index")
ROWS, MAP = ((6, 5), (3, 4, 5)), ((3, 2, 4, 4),)
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "logits": ROWS,
    "hidden": ROWS,
    "features": ROWS,
    "attention": MAP,
    "probabilities": MAP,
    "scores": MAP,
    "relation": ((3, 2, 4, 24),),
    "flow": ((3, 4, 5),),
}
"""The shapes of student and teacher for each word in `takes`; of each of both layers for a flow, and a learned loss is
built for each shape. A loss may refuse some, with ObjectiveError."""
LAYERS = 2
"""How many tensors a side of a flow has: stacked before D here, (B, L, 2, D), and a list for the loss."""


@attrs.frozen(eq=False)
class Trial:
    """A loss and the shape of its student."""

    options: Any
    loss: Callable[..., Tensor]
    roles: frozenset[str]
    """Which of ROLES the loss takes."""
    shape: tuple[int, ...]

    @property
    def offers(self) -> frozenset[str]:
        """Its roles, its kind of tensors, `temperature` if that is an option, `tokens` if samples have them, `module`
        if it is one."""
        names = {field.name for field in attrs.fields(type(self.options))} if attrs.has(type(self.options)) else set()
        tokens = {"tokens"} if len(self.shape) == 3 else set()
        module = {"module"} if isinstance(self.loss, nn.Module) else set()
        return self.roles | {taken(self.options)} | ({"temperature"} & names) | tokens | module

    @property
    def flows(self) -> bool:
        """Whether a side is a list of tensors."""
        return taken(self.options) == "flow"

    @property
    def places(self) -> torch.Size:
        """The shape of a mask, (B,) or (B, L)."""
        return places(taken(self.options), torch.Size(self.shape))

    def inputs(self, dtype: torch.dtype = torch.float32) -> Inputs:
        """Random inputs, the same at each call: student and teacher (..., D), labels (...), and index
        (B,) for a loss that takes it; no mask."""
        generator = torch.Generator().manual_seed(len(self.shape))
        shape = (*self.shape[:-1], LAYERS, self.shape[-1]) if self.flows else self.shape
        student, teacher = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        if taken(self.options) == "probabilities":
            student, teacher = student.softmax(dim=-1), teacher.softmax(dim=-1)
        labels = torch.randint(self.shape[-1], self.places, generator=generator)
        index = {"index": torch.arange(len(student))} if "index" in self.roles else {}
        return {"student": student, "teacher": teacher, "labels": labels, **index}

    def mask(self) -> Tensor:
        """A mask (...) that is False at every third position."""
        positions = torch.arange(self.places.numel())
        return (positions % 3 != 1).view(self.places)

    def hole(self, mask: Tensor) -> Tensor:
        """Where the student's tensor holds nothing that counts, bool, broadcast to its shape."""
        kind = ATTENDED.get(taken(self.options))
        if kind is None:
            return ~mask[..., None, None] if self.flows else ~mask.unsqueeze(-1)
        queries = mask[:, None, :, None]
        return ~(queries & mask[:, None, None, :]) if kind.square else ~queries

    def count(self, inputs: Inputs) -> Tensor:
        """How much the loss of these inputs weighs against that of others, as in a step of several batches."""
        mask = inputs.get("mask") if "mask" in self.roles else None
        inferred: Counts = "positions" if len(self.places) > 1 else "samples"
        counts: Counts = getattr(self.options, "counts", None) or inferred
        return count(mask, counts, len(inputs["student"]), torch.device("cpu"))

    def value(self, inputs: Inputs) -> Tensor:
        """What the loss gives for those of the inputs that it takes.

        A loss that remembers is asked in one and the same state each time: a copy of it is, and forgotten.
        """
        loss = copy.deepcopy(self.loss) if isinstance(self.loss, nn.Module) else self.loss
        return self.asked(loss, inputs)

    def asked(self, loss: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        """What a loss gives, with the sides of a flow as lists."""
        given: dict[str, Any] = {role: tensor for role, tensor in inputs.items() if role in self.roles}
        if self.flows:
            given |= {side: [*given[side].unbind(-2)] for side in ("student", "teacher") if side in given}
        return loss(**given)

    def gradient(self, inputs: Inputs) -> Tensor:
        """The gradient with respect to the student, (..., D); zeros where none arrives."""
        student = inputs["student"].detach().clone().requires_grad_()
        value = self.value({**inputs, "student": student})
        if not value.requires_grad:
            return torch.zeros_like(student)
        (found,) = torch.autograd.grad(value, student, allow_unused=True)
        return torch.zeros_like(student) if found is None else found

    def double(self) -> Trial:
        """The same in float64; a loss that learns is copied."""
        loss = copy.deepcopy(self.loss).double() if isinstance(self.loss, nn.Module) else self.loss
        return attrs.evolve(self, loss=loss)

    def restored(self) -> Trial:
        """The same, built anew from the state_dict of this one."""
        fresh, loss = self.options.build(), self.loss
        assert isinstance(loss, nn.Module)
        fresh.load_state_dict(loss.state_dict())
        return attrs.evolve(self, loss=fresh)

    def tempered(self, temperature: float) -> Trial:
        """The same at another temperature."""
        options = attrs.evolve(self.options, temperature=temperature)
        return attrs.evolve(self, options=options, loss=options.build())

    def __str__(self) -> str:
        return f"student {self.shape}"


def trials(options: Any) -> Iterator[Trial]:
    """A trial for each shape that the loss takes; raises AssertionError when it takes none of its kind's."""
    kind = taken(options)
    require(kind in SHAPES, f"takes is {kind!r}; {words.hint(kind, SHAPES)}")
    found, refused = 0, []
    for shape in SHAPES[kind]:
        loss = options.build()
        trial = Trial(options, loss, roles(loss), shape)
        try:
            trial.asked(loss, trial.inputs())  # and a loss that measures or remembers has had its first batch
        except ObjectiveError as error:
            refused.append(f"{trial}: {error}")
            continue
        except Exception:  # a property will say so, by its name
            pass
        found += 1
        yield trial
    require(found > 0, f"it refuses every shape; {'; '.join(refused)}")


def taken(options: Any) -> str:
    """The kind of tensors that a loss compares."""
    kind: str = getattr(options, "takes", "logits")
    return kind


def roles(loss: Callable[..., Any]) -> frozenset[str]:
    """What a loss asks for, by its signature; raises AssertionError when nobody gives it."""
    call = loss.forward if isinstance(loss, nn.Module) else loss
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(call).parameters
    for name, parameter in parameters.items():
        free = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        require(name in ROLES or not free, f"it asks for {name!r}, which nobody gives; {words.hint(name, ROLES)}")
    require("student" in parameters, f"it takes no 'student'; {words.hint('', ROLES)}")
    return frozenset(ROLES) & parameters.keys()
