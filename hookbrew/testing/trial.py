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
ROLES = ("student", "teacher", "mask", "labels")
ROWS, MAP = ((6, 5), (3, 4, 5)), ((3, 2, 4, 4),)
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "logits": ROWS,
    "hidden": ROWS,
    "features": ROWS,
    "attention": MAP,
    "probabilities": MAP,
    "scores": MAP,
    "relation": ((3, 2, 4, 24),),
}
"""The shapes of student and teacher for each word in `takes`. A loss may refuse some, with ObjectiveError."""


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
        """Its roles, its kind of tensors, `temperature` if that is an option, `tokens` if samples have them."""
        names = {field.name for field in attrs.fields(type(self.options))} if attrs.has(type(self.options)) else set()
        tokens = {"tokens"} if len(self.shape) == 3 else set()
        return self.roles | {taken(self.options)} | ({"temperature"} & names) | tokens

    @property
    def places(self) -> torch.Size:
        """The shape of a mask, (B,) or (B, L)."""
        return places(taken(self.options), torch.Size(self.shape))

    def inputs(self, dtype: torch.dtype = torch.float32) -> Inputs:
        """Random inputs, the same at each call: student and teacher (..., D), labels (...); no mask."""
        generator = torch.Generator().manual_seed(len(self.shape))
        student, teacher = (torch.randn(self.shape, generator=generator).to(dtype) for _ in range(2))
        if taken(self.options) == "probabilities":
            student, teacher = student.softmax(dim=-1), teacher.softmax(dim=-1)
        labels = torch.randint(self.shape[-1], self.places, generator=generator)
        return {"student": student, "teacher": teacher, "labels": labels}

    def mask(self) -> Tensor:
        """A mask (...) that is False at every third position."""
        positions = torch.arange(self.places.numel())
        return (positions % 3 != 1).view(self.places)

    def hole(self, mask: Tensor) -> Tensor:
        """Where the student's tensor holds nothing that counts, bool, broadcast to its shape."""
        kind = ATTENDED.get(taken(self.options))
        if kind is None:
            return ~mask.unsqueeze(-1)
        queries = mask[:, None, :, None]
        return ~(queries & mask[:, None, None, :]) if kind.square else ~queries

    def count(self, inputs: Inputs) -> Tensor:
        """How much the loss of these inputs weighs against that of others, as in a step of several batches."""
        mask = inputs.get("mask") if "mask" in self.roles else None
        inferred: Counts = "positions" if len(self.places) > 1 else "samples"
        counts: Counts = getattr(self.options, "counts", None) or inferred
        return count(mask, counts, len(inputs["student"]), torch.device("cpu"))

    def value(self, inputs: Inputs) -> Tensor:
        """What the loss gives for those of the inputs that it takes."""
        return self.loss(**{role: tensor for role, tensor in inputs.items() if role in self.roles})

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
    loss = options.build()
    found, refused = 0, []
    for shape in SHAPES[kind]:
        trial = Trial(options, loss, roles(loss), shape)
        try:
            trial.value(trial.inputs())
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
