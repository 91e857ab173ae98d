"""Losses on log-probabilities with their gradients, in place. N rows, V classes; p the teacher's, q the student's.

Each takes log q and log p, (N, V), which it overwrites, and gives the loss F of each row, (N,), and a function that
makes its slope, the derivative by the student's logits, (N, V): z - q sum(z) with z_c = dF / d log q_c. A class with
probability 0 adds nothing to either, as in the dense losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hookbrew.objective import glance

Slope = Callable[[], Tensor]


class Pool:
    """Buffers, (N, V), lent and taken back, so that a walk over chunks asks the allocator once and not in each chunk.

    Big blocks that are freed go back to the system, and fault in page by page when they are asked for again.
    """

    def __init__(self, classes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.classes, self.dtype, self.device = classes, dtype, device
        self.rows = 0
        self.free: list[Tensor] = []
        self.lent: list[Tensor] = []

    def fit(self, rows: int) -> None:
        """Take all back; lend N = rows from now on, which only gets smaller."""
        self.give(*self.lent)
        if rows != self.rows:
            self.rows, self.free = rows, [buffer[:rows] for buffer in self.free]

    def take(self) -> Tensor:
        """A buffer with anything in it."""
        if not self.free:
            self.free.append(torch.empty(self.rows, self.classes, dtype=self.dtype, device=self.device))
        self.lent.append(self.free.pop())
        return self.lent[-1]

    def give(self, *buffers: Tensor) -> None:
        """Take these back."""
        self.free += [one for one in self.lent if any(one is buffer for buffer in buffers)]
        self.lent = [one for one in self.lent if not any(one is buffer for buffer in buffers)]

    def keep(self, *buffers: Tensor | None) -> None:
        """Take all back but these."""
        self.give(*(one for one in self.lent if not any(one is buffer for buffer in buffers)))


def kd_ce(log_q: Tensor, log_p: Tensor, pool: Pool) -> tuple[Tensor, Slope]:
    """-sum_c p_c log q_c, (N,), and its slope, q - p."""
    p = log_p.exp_()
    rows = weighed(torch.mul(p, log_q, out=pool.take()), p)
    return rows.neg_(), lambda: log_q.exp_().sub_(p)


def kl(log_q: Tensor, log_p: Tensor, pool: Pool) -> tuple[Tensor, Slope]:
    """KL(p || q), (N,), and its slope, q - p."""
    p = torch.exp(log_p, out=pool.take())
    rows = weighed(log_p.sub_(log_q).mul_(p), p)
    return rows, lambda: log_q.exp_().sub_(p)


def rkl(log_q: Tensor, log_p: Tensor, pool: Pool) -> tuple[Tensor, Slope]:
    """KL(q || p), (N,), and its slope, q (log q - log p - KL)."""
    q = torch.exp(log_q, out=pool.take())
    parts = log_q.sub_(log_p).mul_(q)
    rows = weighed(parts, q)
    return rows, lambda: centred(parts, q)


def jsd(log_q: Tensor, log_p: Tensor, pool: Pool, beta: float) -> tuple[Tensor, Slope]:
    """b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q, (N,), and its slope, of z = (1 - b) q (log q - log m)."""
    p, q = torch.exp(log_p, out=pool.take()), torch.exp(log_q, out=pool.take())
    log_m = mixture(q, p, beta)
    ours = weighed(log_p.sub_(log_m).mul_(p), p)
    q = torch.exp(log_q, out=p)  # once more: cheaper than a buffer
    parts = log_q.sub_(log_m).mul_(q)
    rows = ours.mul_(beta).add_(weighed(parts, q), alpha=1.0 - beta)
    return rows, lambda: centred(parts, q).mul_(1.0 - beta)


def skl(log_q: Tensor, log_p: Tensor, pool: Pool, skew: float) -> tuple[Tensor, Slope]:
    """KL(p || m), m = s p + (1 - s) q, (N,), and its slope, of z = -(1 - s) p q / m."""
    p, q = torch.exp(log_p, out=pool.take()), torch.exp(log_q, out=pool.take())
    log_m = mixture(log_q.copy_(q), p, skew)
    ratio = torch.exp(log_p.sub_(log_m), out=log_m).mul_(q)
    rows = weighed(log_p.mul_(p), p)
    return rows, lambda: centred(ratio, q).mul_(skew - 1.0)


def srkl(log_q: Tensor, log_p: Tensor, pool: Pool, skew: float) -> tuple[Tensor, Slope]:
    """KL(q || m), m = s q + (1 - s) p, (N,), and its slope, of z = q (log q - log m - s q / m)."""
    q, p = torch.exp(log_q, out=pool.take()), log_p.exp_()
    log_m = mixture(p, q, skew)
    ratio = torch.exp(log_q.sub_(log_m), out=pool.take())
    parts = log_q.mul_(q)
    rows = weighed(parts, q)
    return rows, lambda: centred(parts.addcmul_(ratio, q, value=-skew), q)


def ce(log_q: Tensor, labels: Tensor) -> tuple[Tensor, Slope]:
    """-log q_y, (N,), and its slope, q less one at y. labels: (N,), classes from 0 to V - 1."""
    there = labels.unsqueeze(-1)
    rows = log_q.gather(-1, there).squeeze(-1).neg_()
    minus = rows.new_full((1, 1), -1.0).expand_as(there)
    return rows, lambda: log_q.exp_().scatter_add_(-1, there, minus)


def weighed(parts: Tensor, p: Tensor) -> Tensor:
    """The sum of each row of parts, products with p; 0 times what is not finite counts, and is made, 0."""
    rows = parts.sum(dim=-1)
    number = glance(rows.sum()) if rows.is_cpu else None  # what is nan in one row is nan in the sum
    if number is not None and not math.isnan(number):
        return rows
    return parts.masked_fill_(p == 0, 0.0).sum(dim=-1)


def mixture(rest: Tensor, p: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) rest), in place of rest; finite where both are 0, as such classes have no weight."""
    return rest.mul_(1.0 - share).add_(p, alpha=share).clamp_(min=torch.finfo(rest.dtype).tiny).log_()


def centred(parts: Tensor, q: Tensor) -> Tensor:
    """parts - q sum(parts) of each row, in place: what the softmax makes of a derivative by log q."""
    return parts.addcmul_(q, parts.sum(dim=-1, keepdim=True), value=-1.0)


def chosen(loss: str, share: float) -> Callable[[Tensor, Tensor, Pool], tuple[Tensor, Slope]]:
    """The function of a loss by name; where its share makes it another, as in the dense one, the other."""
    if loss == "jsd" and share not in (0, 1):
        return partial(jsd, beta=share)
    if loss in ("skl", "srkl") and share != 0:
        return partial(skl if loss == "skl" else srkl, skew=share)
    plain = {"kd_ce": kd_ce, "kl": kl, "rkl": rkl, "jsd": rkl if share else kl, "skl": kl, "srkl": rkl}
    return plain[loss]
