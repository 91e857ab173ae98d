"""Losses on attention. B batch, H heads, L queries, S keys; probabilities or scores, (B, H, L, S).

A mask (B, L) takes out queries and keys alike, n_b are left in sample b. Without a mask every query and key counts,
as with a mask of True. That is TextBrewer's sum with a mask; without one it sets values below -0.001 to 0 instead,
which stood for padding at -10,000 there. The tap `:scores` has -inf where a key is not seen: it counts as equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped
from torch.nn import functional

from hookbrew.objective import valid_mean
from hookbrew.plugin import options
from hookbrew_plugins.losses.heads import crossed, mapped, softened

ENTROPY = {"zero_at_agreement": "a cross-entropy has the teacher's entropy left at agreement; its gradient is 0 there"}


@options
class AttentionMSE:
    """Mean squared difference of attentions, head by head, over pairs of valid tokens.

    Takes scores, as TinyBERT does (Jiao et al. 2020, eq. 7), or probabilities; the same on both sides.
    """

    takes: ClassVar[str] = "attention"
    counts: ClassVar[str] = "pairs"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return attention_mse


@options
class AttentionMSESum:
    """Mean squared difference of attentions that are summed over heads, over pairs of valid tokens (TextBrewer).

    Takes scores or probabilities. Numbers of heads may differ, but then the sums of probabilities do too: 4 heads
    sum to 4 in each row and 12 to 12, so that it cannot become 0.
    """

    takes: ClassVar[str] = "attention"
    counts: ClassVar[str] = "pairs"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return attention_mse_sum


@options
class AttentionCE:
    """Cross-entropy of the softmax of attention scores, mean over heads and valid queries (TextBrewer)."""

    takes: ClassVar[str] = "scores"
    counts: ClassVar[str] = "positions"
    exempt: ClassVar[dict[str, str]] = ENTROPY

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return attention_ce


@options
class AttentionCEMean:
    """Cross-entropy of the softmax of attention scores, averaged over heads before it; numbers of heads may differ.

    The mean is over valid queries (TextBrewer).
    """

    takes: ClassVar[str] = "scores"
    counts: ClassVar[str] = "positions"
    exempt: ClassVar[dict[str, str]] = ENTROPY

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return attention_ce_mean


@options
class AttentionKL:
    """KL divergence of attention probabilities, mean over heads and valid queries (MiniLM, Wang et al. 2020, 3.1)."""

    takes: ClassVar[str] = "probabilities"
    counts: ClassVar[str] = "positions"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return attention_kl


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """sum_bhij (student - teacher)^2 m_bi m_bj / (H sum_b n_b^2), a scalar.

    student, teacher: (B, H, L, S); the teacher receives no gradient. mask: bool (B, L).
    A cell that is -inf on either side adds 0 and is counted. TinyBERT, eq. 7; TextBrewer's `attention_mse` with a mask.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = mapped(student, teacher, mask)
    if mask is None and student.dtype == teacher.dtype and seen(student) and seen(teacher):
        return functional.mse_loss(student, teacher).clone()  # one pass; torch leaves the scalar all of its buffer
    return valid_mean(squares(student, teacher).mean(dim=1), None if mask is None else crossed(mask))


def attention_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """sum_bij (sum_h student - sum_h teacher)^2 m_bi m_bj / sum_b n_b^2, a scalar.

    student, teacher: (B, H, L, S), each with its own H; the teacher receives no gradient. mask: bool (B, L).
    A cell that is -inf in any head adds 0 and is counted. TextBrewer's `attention_mse_sum` with a mask.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = mapped(student, teacher, mask, merged=True)
    return valid_mean(squares(student.sum(dim=1), teacher.sum(dim=1)), None if mask is None else crossed(mask))


def attention_ce(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """-sum_bhi m_bi sum_j p_bhij log q_bhij / (H sum_b n_b), a scalar; p, q the softmax of teacher and student.

    student, teacher: scores (B, H, L, S); the teacher receives no gradient. mask: bool (B, L).
    The softmax runs over the valid keys that neither side rules out with -inf. TextBrewer's `attention_ce`, whose
    softmax runs over padding too: its scores are -10,000 there, and then the numbers are the same.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = mapped(student, teacher, mask)
    return valid_mean(entropies(student, teacher, mask).mean(dim=1), mask)


def attention_ce_mean(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """-sum_bi m_bi sum_j p_bij log q_bij / sum_b n_b, a scalar; p, q the softmax of the mean over heads.

    student, teacher: scores (B, H, L, S), each with its own H; the teacher receives no gradient. mask: bool (B, L).
    A key that is -inf in any head is left out for its query. TextBrewer's `attention_ce_mean`, as for `attention_ce`.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = mapped(student, teacher, mask, merged=True)
    student, teacher = (scores.mean(dim=1, keepdim=True) for scores in (student, teacher))
    return valid_mean(entropies(student, teacher, mask).squeeze(1), mask)


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """sum_bhi m_bi KL(teacher_bhi | student_bhi) / (H sum_b n_b), a scalar, 0 or more.

    student, teacher: probabilities (B, H, L, S); the teacher receives no gradient. mask: bool (B, L).
    Rows are distributions over the valid keys: each is divided by its sum, which is 1 where padding is not attended.
    A key that only the student rules out counts with the smallest probability that has full precision (1e-38 in
    float32), without a gradient. A query that sees no key gives 0. MiniLM, section 3.1.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = (rowed(side) for side in mapped(student, teacher, mask))
    ratio = logged(teacher) - logged(student)
    apart = (teacher * ratio).masked_fill(~(student.sum(dim=-1, keepdim=True) > 0), 0.0)
    return valid_mean(apart.sum(dim=-1).mean(dim=1), mask)


def seen(attention: Tensor) -> bool:
    """Whether it is known that no cell is -inf: asked of a CPU alone, where it costs less than care for such cells."""
    if attention.device.type != "cpu" or not attention.numel() or is_wrapped(attention):
        return False
    return bool(attention.detach().amin() > -torch.inf)  # nan is not


def squares(student: Tensor, teacher: Tensor) -> Tensor:
    """(student - teacher)^2, and 0 where either is -inf."""
    absent = torch.isneginf(student) | torch.isneginf(teacher)
    return (student - teacher).masked_fill(absent, 0.0).square()  # a difference has no gradient of nan


def entropies(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """-sum_j p_j log q_j over the keys that count: (B, H, L, S) to (B, H, L)."""
    seen = ~(torch.isneginf(student) | torch.isneginf(teacher))
    if mask is not None:
        seen = seen & mask[:, None, None, :]
    logs = softened(student, seen).masked_fill(~seen, 0.0)
    return -(softened(teacher, seen).exp() * logs).sum(dim=-1)


def rowed(probabilities: Tensor) -> Tensor:
    """Rows that sum to 1; one of zeros stays as it is."""
    sums = probabilities.sum(dim=-1, keepdim=True)
    return probabilities / sums.masked_fill(sums == 0, 1.0)


def logged(probabilities: Tensor) -> Tensor:
    """The log, that of the smallest normal number where there is less."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
