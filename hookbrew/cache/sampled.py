"""Classes drawn from what a teacher finds likely: without bias where a loss is linear in its probabilities.

B batch, L tokens, C classes, N draws. Anshumann et al. 2025, Sparse Logit Sampling (arXiv 2503.16870), with draws from
the probabilities themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew.cache.keys import content
from hookbrew.cache.kinds import Part, logits, stored


@attrs.frozen
class Sampled:
    """The ids of N classes, drawn with replacement from softmax(logits / T), for each example or token.

    The share of each class among them is its probability in the mean, with a deviation of sqrt(p (1 - p) / N).
    """

    draws: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    tokens: bool = False
    """Whether the logits are (B, L, C), and not (B, C)."""
    classes: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """C, for `decode`."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The ids, (N,) for each example or token."""
        return (Part("draws", "int32", self.tokens),)

    def facts(self) -> dict[str, Any]:
        """Its name, options and parts."""
        return stored("sampled", self.parts, draws=self.draws, temperature=self.temperature)

    def encode(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The ids. What is drawn for an example is a function of its logits, those of padding too."""
        p = (logits(outputs, tokens=self.tokens).float() / self.temperature).softmax(-1).cpu()
        return [torch.stack([drawn(row, self.draws) for row in p]).int().to(outputs["logits"].device)]

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits whose softmax at the temperature is the share of each class among the draws, -inf for one of none."""
        draws = parts["draws"].long()
        share = torch.zeros(*draws.shape[:-1], self.classes, device=draws.device)
        share.scatter_add_(-1, draws, torch.full(draws.shape, 1 / self.draws, device=draws.device))
        return {"logits": share.log() * self.temperature}


def drawn(p: Tensor, number: int) -> Tensor:
    """Ids of classes, (..., N), drawn from the rows of p, (..., C), by a seed that is made of these."""
    seed = int.from_bytes(hashlib.blake2b(content(p), digest_size=7).digest())
    rows = p.reshape(-1, p.shape[-1])
    ids = torch.multinomial(rows, number, replacement=True, generator=torch.Generator().manual_seed(seed))
    return ids.reshape(*p.shape[:-1], number)
