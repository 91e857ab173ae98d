"""The walk over chunks of rows from hidden states to losses and gradients, as one operation of autograd.

N rows (positions), D features (student and teacher may differ), V classes.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from hookbrew.errors import ObjectiveError
from hookbrew.objective import Side
from hookbrew.words import hint
from hookbrew_plugins.losses.shapes import IGNORED
from hookbrew_plugins.losses.slopes import Pool, Slope, ce, chosen
from hookbrew_plugins.losses.soften import Temperature, squared

SHARES = {"jsd": 0.5, "skl": 0.1, "srkl": 0.1}
"""Losses with a mixture, and the share of it that the dense ones take by themselves."""
LOSSES = ("ce", "kd_ce", "kl", "rkl", *SHARES)


@attrs.frozen(eq=False)
class Term:
    """One loss of the sum: `ce` on labels, or `kd_ce`, `kl`, `rkl`, `jsd`, `skl`, `srkl` on both logits.

    Raises ObjectiveError for an unknown loss, and for an option that it does not have.
    """

    loss: str
    weight: float | Tensor = 1.0
    """A number, or a scalar without a gradient."""
    temperature: Temperature = 1.0
    """A number, or one for each position, as the mask; it receives no gradient."""
    t_squared: bool = True
    share: float | None = None
    """`beta` of `jsd`, `skew` of `skl` and `srkl`; None is the dense loss's own."""

    def __attrs_post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ObjectiveError(f"no chunked loss {self.loss!r}; {hint(self.loss, LOSSES)}")
        if self.share is not None and self.loss not in SHARES:
            raise ObjectiveError(f"chunked loss {self.loss!r} has no share; {', '.join(SHARES)} have one")
        if self.share is not None and not (0 <= self.share < 1 or (self.share == 1 and self.loss == "jsd")):
            raise ObjectiveError(f"share of {self.loss!r} is {self.share}; expected 0 to 1, with 1 for 'jsd' only")
        if isinstance(self.temperature, Tensor):
            if self.temperature.requires_grad:
                raise ObjectiveError(
                    "a temperature that learns needs the dense loss: the chunked one gives it no gradient"
                )
        elif self.temperature <= 0:
            raise ObjectiveError(f"temperature is {self.temperature}; expected a number above 0")
        if self.hard and (isinstance(self.temperature, Tensor) or self.temperature != 1):
            raise ObjectiveError("chunked loss 'ce' has no temperature")

    @property
    def hard(self) -> bool:
        """Whether it is on labels."""
        return self.loss == "ce"

    @property
    def part(self) -> float:
        """The share that counts."""
        return SHARES.get(self.loss, 0.0) if self.share is None else self.share


@attrs.frozen(eq=False)
class Plan:
    """What a walk needs beside the student."""

    teacher: Side | None
    terms: tuple[Term, ...]
    picked: Tensor | None
    """The rows that count, (number,); None for all N."""
    labels: Tensor | None
    """(N,)."""
    number: int
    size: int
    """Rows of a chunk."""
    wide: torch.dtype
    """What the softmax is computed in."""
    low: torch.dtype | None
    """What autocast would compute the product in; None without it."""
    learning: bool


class Grads:
    """The student's gradients while they grow: of hidden states (N, D), weight (V, D) and bias (V,), where wanted."""

    def __init__(self, student: Side, plan: Plan, wanted: list[bool]) -> None:
        hidden, weight, bias = student
        self.shape, self.kinds = hidden.shape, [None if one is None else held(one, plan.wide) for one in (weight, bias)]
        rows = hidden.reshape(-1, hidden.shape[-1])
        self.hidden = torch.zeros_like(rows, dtype=held(hidden, plan.wide)) if wanted[0] else None
        # wider than the weight: a sum over many chunks loses what it is given in 16 bits
        self.weight = torch.zeros_like(weight, dtype=plan.wide) if wanted[1] else None
        self.bias = None if bias is None or not wanted[2] else torch.zeros_like(bias, dtype=plan.wide)

    def wanted(self) -> bool:
        """Whether there is any."""
        return not (self.hidden is None and self.weight is None and self.bias is None)

    def add(self, slope: Tensor, rows: Tensor, weight: Tensor, pick: Tensor | slice) -> None:
        """What a chunk adds. slope: (n, V). rows, (n, D), and weight, (V, D): what gave its logits."""
        low, rows, weight = (one.to(held(rows, slope.dtype)) for one in (slope, rows, weight))
        if self.hidden is not None:
            self.hidden[pick] = (low @ weight).to(self.hidden.dtype)
        if self.weight is not None and low.dtype == self.weight.dtype:
            self.weight.addmm_(low.t(), rows)
        elif self.weight is not None:
            self.weight.add_(low.t() @ rows)
        if self.bias is not None:
            self.bias.add_(slope.sum(dim=0))

    def made(self) -> list[Tensor | None]:
        """In the shapes of what they are the gradients of, as `held`."""
        hidden = None if self.hidden is None else self.hidden.view(self.shape)
        heads = zip((self.weight, self.bias), self.kinds, strict=True)
        return [hidden, *(None if one is None else one.to(kind) for one, kind in heads)]


def held(tensor: Tensor, wide: torch.dtype) -> torch.dtype:
    """In what the gradient of a tensor waits for the backward, which scales it: as the tensor, but for float16.

    There, small parts would be 0 before the factor of a GradScaler could save them."""
    return wide if tensor.dtype == torch.float16 else tensor.dtype


class Walk(Function):
    """The gradients are made in the forward, chunk by chunk, and scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> tuple[Tensor, Tensor]:
        """The weighted sum, a scalar, and each term, (terms,), without a gradient."""
        student = Side(hidden, weight, bias)
        grads = Grads(student, plan, [plan.learning and need for need in ctx.needs_input_grad[:3]])
        with torch.autocast(hidden.device.type, enabled=False):  # products of gradients have a type of their own
            values = walked(student, plan, grads)
        ctx.save_for_backward(*grads.made())
        total = torch.zeros_like(values[0])
        for term, value in zip(plan.terms, values, strict=True):
            total = total + term.weight * value
        each = torch.stack(values)
        ctx.mark_non_differentiable(each)
        return total, each

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """The gradients, times that of the sum."""
        grad, saved = upstream[0], ctx.saved_tensors
        if torch.is_grad_enabled():  # else a second derivative would find nothing that leads here, and miss a part
            return (*Scaled.apply(grad.detach().requires_grad_(), *saved), None)  # type: ignore[no-untyped-call]
        if torch._C._autograd._get_current_graph_task_keep_graph():
            return (*scaled(grad, saved), None)
        return (*(None if one is None else one.mul_(grad) for one in saved), None)  # nobody asks for them again


class Scaled(Function):
    """The scaling, where somebody may ask for its derivative."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *saved: Tensor | None) -> tuple[Tensor | None, ...]:
        """Each times grad."""
        return scaled(grad, saved)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        """Raise ObjectiveError."""
        raise ObjectiveError("a chunked loss has no second derivatives; take the dense loss")


def scaled(grad: Tensor, saved: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Each times grad, in its own type."""
    return tuple(None if one is None else one * grad.to(one.dtype) for one in saved)


def walked(student: Side, plan: Plan, grads: Grads) -> list[Tensor]:
    """Each term, a scalar, the mean over its rows; the gradients of their weighted sum go to grads."""
    pool = Pool(student.weight.shape[0], plan.wide, student.hidden.device)
    ours, theirs = ready(student, plan.low), None if plan.teacher is None else ready(plan.teacher, plan.low)
    values = [student.hidden.new_zeros((), dtype=plan.wide) for _ in plan.terms]
    counts = [counted(term, plan) for term in plan.terms]
    for start in range(0, plan.number, plan.size):
        stop = min(start + plan.size, plan.number)
        pick = slice(start, stop) if plan.picked is None else plan.picked[start:stop]
        pool.fit(stop - start)
        rows, logits = product(ours, pick, pool)
        other = None if theirs is None else product(theirs, pick, pool)[1]
        total: Tensor | None = None
        for place, term in enumerate(plan.terms):
            own = place == len(plan.terms) - 1  # the last may overwrite the logits
            found, slope, scale = measured(term, plan, (logits, other), (pick, pool, own))
            values[place] += found.sum() / counts[place]
            if grads.wanted() and (isinstance(term.weight, Tensor) or term.weight):
                made = slope().mul_(scale * term.weight / counts[place])
                total = made if total is None else total.add_(made)
            pool.keep(total, *(() if own else (logits, other)))
        if total is not None:
            grads.add(total, rows, ours.weight, pick)
    return values


def measured(
    term: Term, plan: Plan, logits: tuple[Tensor, Tensor | None], where: tuple[Tensor | slice, Pool, bool]
) -> tuple[Tensor, Slope, Tensor | float]:
    """The loss of each row of a chunk, (n,), what makes its slope, and what that is multiplied with, per row or all."""
    (student, teacher), (pick, pool, own) = logits, where
    if term.hard:
        assert plan.labels is not None
        labels = plan.labels[pick]
        there = labels != IGNORED
        found, slope = ce(logs(student, 1.0, pool, own), torch.where(there, labels, 0))
        return found.masked_fill(~there, 0.0), slope, there.to(plan.wide).unsqueeze(-1)
    assert teacher is not None
    heat = term.temperature
    if isinstance(heat, Tensor):
        heat = heat.flatten()[pick].to(plan.wide)
    column = heat.unsqueeze(-1) if isinstance(heat, Tensor) else heat
    log_q = logs(student, column, pool, own)
    log_p = logs(teacher, column, pool, own)
    found, slope = chosen(term.loss, term.part)(log_q, log_p, pool)
    return found * squared(heat, term.t_squared), slope, squared(column, term.t_squared) / column


def logs(logits: Tensor, temperature: Temperature, pool: Pool, own: bool) -> Tensor:
    """log softmax of logits / temperature, (n, V), in a buffer of its own; own: the logits may be overwritten."""
    warm = logits
    if isinstance(temperature, Tensor) or temperature != 1:
        warm = torch.div(logits, temperature, out=logits if own else pool.take())
    made = torch.log_softmax(warm, -1, out=pool.take())
    if own or warm is not logits:
        pool.give(warm)
    return made


def product(side: Side, pick: Tensor | slice, pool: Pool) -> tuple[Tensor, Tensor]:
    """The picked hidden states, (n, D), as they are multiplied, and their logits, (n, V), widened, in a buffer."""
    rows, weight, made = side.hidden[pick].to(side.weight.dtype), side.weight, pool.take()
    if weight.dtype != made.dtype:
        return rows, made.copy_(functional.linear(rows, weight, side.bias))
    if side.bias is None:
        return rows, torch.mm(rows, weight.t(), out=made)
    return rows, torch.addmm(side.bias, rows, weight.t(), out=made)


def ready(side: Side, low: torch.dtype | None) -> Side:
    """Hidden states as rows, (N, D), and the head in the type of the product."""
    hidden, weight, bias = side
    if low is not None and weight.dtype != torch.float64:  # autocast leaves float64 as it is, too
        weight, bias = weight.to(low), None if bias is None else bias.to(low)
    return Side(hidden.reshape(-1, hidden.shape[-1]), weight, bias)


def counted(term: Term, plan: Plan) -> Tensor | int:
    """How many rows a term is the mean over; 1 where there is none."""
    if not term.hard or all(one.hard for one in plan.terms):
        return max(1, plan.number)
    assert plan.labels is not None
    labels = plan.labels if plan.picked is None else plan.labels[plan.picked]
    return (labels != IGNORED).sum().clamp(min=1)
