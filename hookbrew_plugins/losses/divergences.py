"""Divergences between the teacher's and the student's distribution. B batch, L tokens, C classes.

p = softmax(teacher / T), q = softmax(student / T), over the last dimension, in float32 or wider. All are 0 at
agreement, and T^2 keeps the size of the gradient as T grows (Hinton, Vinyals, Dean 2015, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import attrs
import torch
from attrs import validators
from torch import Tensor

from hookbrew.objective import Chunked
from hookbrew.plugin import fraction, options, positive
from hookbrew_plugins.losses.chunked import told
from hookbrew_plugins.losses.soften import Temperature, divergence, expected, softened, squared, summed
from hookbrew_plugins.losses.sparing import sparing
from hookbrew_plugins.losses.teaching import Taught


@options
class Softened:
    """Options of a divergence between two softened distributions."""

    temperature: float = positive(1.0)
    """T: divides the logits of both; higher is softer."""
    t_squared: bool = True
    """Multiply by T^2, so that the gradient keeps its size whatever T is; false is what GKD and TextBrewer do."""
    standardize: bool = False
    """Give the logits of each row mean 0 and deviation 1 before T divides them (Sun et al. 2024)."""

    def softly(self, loss: Callable[..., Tensor], **own: float) -> Callable[..., Tensor]:
        """The loss with these options and its own."""
        made = partial(loss, temperature=self.temperature, t_squared=self.t_squared, standardize=self.standardize)
        return partial(made, **own)

    def walked(self, loss: str, share: float | None = None) -> Chunked | None:
        """What a loss with these options tells of its chunked form; standardized rows have none."""
        if self.standardize:
            return None
        return told(loss, temperature=self.temperature, t_squared=self.t_squared, share=share)


@options
class KL(Taught):
    """Forward Kullback-Leibler divergence, T^2 sum_c p_c log(p_c / q_c), mean over valid positions.

    The gradient of `kd_ce` with a value that says how far the two are apart: 0 at agreement.
    """

    takes: ClassVar[str] = "logits"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask, and labels with `probability_shift`."""
        return self.around(kl)

    def chunked(self) -> Chunked | None:
        """From hidden states and heads, where no option looks at whole rows."""
        return self.walked("kl")


@options
class RKL(Softened):
    """Reverse Kullback-Leibler divergence, T^2 sum_c q_c log(q_c / p_c), mean over valid positions.

    The student settles on what the teacher finds likely instead of covering all of it (MiniLLM, Gu et al. 2024).
    Infinite where the teacher rules out, with -inf, a class that the student does not.
    """

    takes: ClassVar[str] = "logits"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return self.softly(rkl)

    def chunked(self) -> Chunked | None:
        """From hidden states and heads, where rows are not standardized."""
        return self.walked("rkl")


@options
class JSD(Softened):
    """Generalised Jensen-Shannon divergence, T^2 (b KL(p || m) + (1 - b) KL(q || m)), m = b p + (1 - b) q.

    b is `beta`; the mean is over valid positions. Bounded, symmetric at b = 0.5 (GKD, Agarwal et al. 2024, eq. 1).
    At b = 0 it is the forward, at b = 1 the reverse KL, as in the authors' code. The formula itself is 0 at both
    ends, and only its ratio to b, or to 1 - b, tends to these: the value jumps there.
    """

    takes: ClassVar[str] = "logits"

    beta: float = fraction(0.5)
    """The teacher's share of the mixture: 0 forward KL, 1 reverse KL."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return self.softly(jsd, beta=self.beta)

    def chunked(self) -> Chunked | None:
        """From hidden states and heads, where rows are not standardized."""
        return self.walked("jsd", self.beta)


@options
class SKL(Softened):
    """Skew Kullback-Leibler divergence, T^2 KL(p || s p + (1 - s) q), mean over valid positions.

    s is `skew` (DistiLLM, Ko et al. 2024). Finite even where the student has no mass.
    """

    takes: ClassVar[str] = "logits"

    skew: float = attrs.field(default=0.1, validator=validators.and_(validators.ge(0), validators.lt(1)))
    """The teacher's share of the mixture; 0 is `kl`."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return self.softly(skl, skew=self.skew)

    def chunked(self) -> Chunked | None:
        """From hidden states and heads, where rows are not standardized."""
        return self.walked("skl", self.skew)


@options
class SRKL(Softened):
    """Skew reverse Kullback-Leibler divergence, T^2 KL(q || s q + (1 - s) p), mean over valid positions.

    s is `skew` (DistiLLM, Ko et al. 2024). Finite even where the teacher has no mass.
    """

    takes: ClassVar[str] = "logits"

    skew: float = attrs.field(default=0.1, validator=validators.and_(validators.ge(0), validators.lt(1)))
    """The student's share of the mixture; 0 is `rkl`."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return self.softly(srkl, skew=self.skew)

    def chunked(self) -> Chunked | None:
        """From hidden states and heads, where rows are not standardized."""
        return self.walked("srkl", self.skew)


@options
class TVD:
    """Total variation distance, T / 2 sum_c |p_c - q_c|, mean over valid positions (Wen et al. 2023).

    T and not T^2: the gradient of a distance shrinks with T, that of a divergence with T^2.
    """

    takes: ClassVar[str] = "logits"

    temperature: float = positive(1.0)
    """T: divides the logits of both; higher is softer."""
    standardize: bool = False
    """Give the logits of each row mean 0 and deviation 1 before T divides them (Sun et al. 2024)."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(tvd, temperature=self.temperature, standardize=self.standardize)


@sparing
def kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: Temperature = 4.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """T^2 sum_c p_c (log p_c - log q_c), mean over valid positions, a scalar.

    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. mask: bool (B,) or (B, L).
    temperature: a number, or one for each position, as mask. standardize: see `standardized`.
    A class that the teacher rules out with -inf adds nothing. Hinton, Vinyals, Dean 2015, section 2.

    Raises ObjectiveError when the shapes do not fit.
    """
    log_q, log_p = softened(student, teacher, mask, temperature, standardize)
    return expected(log_p.exp(), log_p - log_q, mask, squared(temperature, t_squared))


@sparing
def rkl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: Temperature = 1.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """T^2 sum_c q_c (log q_c - log p_c), mean over valid positions, a scalar; arguments and errors as in `kl`.

    A class that the student rules out with -inf adds nothing; one that the teacher alone rules out gives inf.
    Gu et al. 2024, MiniLLM, for each position by itself.
    """
    log_q, log_p = softened(student, teacher, mask, temperature, standardize)
    return expected(log_q.exp(), log_q - log_p, mask, squared(temperature, t_squared))


@sparing
def jsd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    beta: float = 0.5,
    temperature: Temperature = 1.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """T^2 (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q, mean over valid positions, a scalar.

    beta from 0 to 1; exactly 0 is KL(p || q), exactly 1 is KL(q || p). Other arguments and errors as in `kl`.
    Agarwal et al. 2024, On-Policy Distillation, eq. 1.
    """
    log_q, log_p = softened(student, teacher, mask, temperature, standardize)
    if beta in (0, 1):
        parts = divergence(log_q, log_p) if beta else divergence(log_p, log_q)
    else:
        log_m = mixed(log_p, log_q, beta)
        parts = beta * divergence(log_p, log_m) + (1.0 - beta) * divergence(log_q, log_m)
    return summed(parts, mask, squared(temperature, t_squared))


@sparing
def skl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    skew: float = 0.1,
    temperature: Temperature = 1.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """T^2 KL(p || skew p + (1 - skew) q), mean over valid positions, a scalar; other arguments and errors as in `kl`.

    Ko et al. 2024, DistiLLM.
    """
    log_q, log_p = softened(student, teacher, mask, temperature, standardize)
    return summed(divergence(log_p, mixed(log_p, log_q, skew)), mask, squared(temperature, t_squared))


@sparing
def srkl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    skew: float = 0.1,
    temperature: Temperature = 1.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """T^2 KL(q || skew q + (1 - skew) p), mean over valid positions, a scalar; other arguments and errors as in `kl`.

    Ko et al. 2024, DistiLLM.
    """
    log_q, log_p = softened(student, teacher, mask, temperature, standardize)
    return summed(divergence(log_q, mixed(log_q, log_p, skew)), mask, squared(temperature, t_squared))


def tvd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    standardize: bool = False,
) -> Tensor:
    """T / 2 sum_c |p_c - q_c|, mean over valid positions, a scalar, at T = 1 from 0 to 1.

    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. mask: bool (B,) or (B, L).
    standardize: see `standardized`. Wen et al. 2023, f-Divergence Minimization for Sequence-Level Distillation.

    Raises ObjectiveError when the shapes do not fit.
    """
    log_q, log_p = softened(student, teacher, mask, temperature, standardize)
    return summed((log_p.exp() - log_q.exp()).abs(), mask, 0.5 * temperature)


def mixed(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b), (..., C); share from 0 to less than 1."""
    if share == 0:
        return log_b
    none = torch.isneginf(log_a) & torch.isneginf(log_b)  # logaddexp has no gradient there but nan
    log_a, log_b = log_a.masked_fill(none, 0.0), log_b.masked_fill(none, 0.0)
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share)).masked_fill(none, -torch.inf)
