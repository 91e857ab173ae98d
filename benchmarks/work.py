"""The jobs that benchmarks/peers.py gives to everybody: models, batches, and the loss as a person would write it.

B batch, L tokens, D features, C classes, H heads, V vocabulary. Nothing is padded, so that all conventions agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import attrs
import torch
from models import decoders, encoders, perceptrons, stored, storing
from torch import Generator, Tensor, nn
from torch.nn import functional

import hookbrew as hb

TEMPERATURE = 4.0
HIDDEN = ((0, 0), (1, 4), (2, 8), (3, 12))
"""Numbers of hidden states that are matched, student and teacher; 0 is what the embeddings give."""
EARLY = ((0, 0), (1, 2), (2, 4), (3, 6))
MAPS = ((0, 3), (2, 5))
"""Numbers of the layers whose attentions are matched."""
TOKENS = ("input_ids", "attention_mask")
Batch = dict[str, Tensor]


def tokens(generator: Generator, size: tuple[int, int], *, words: int, labels: int | None = None) -> Batch:
    """Words (B, L), all seen, and labels (B,) if there are any."""
    ids = torch.randint(5, words, size, generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch if labels is None else batch | {"labels": torch.randint(labels, size[:1], generator=generator)}


def beside(generator: Generator, size: tuple[int, int]) -> Batch:
    """The same, with the logits (B, C) of a teacher that was run before."""
    batch = tokens(generator, size, words=5000, labels=4)
    with torch.no_grad():
        return batch | {"stored": storing()(**{key: batch[key] for key in TOKENS}).logits}


def numbers(generator: Generator, size: tuple[int, int]) -> Batch:
    """Features (B, D) and labels (B,)."""
    return {"input": torch.randn(size, generator=generator), "labels": torch.randint(4, size[:1], generator=generator)}


@attrs.frozen(kw_only=True)
class Work:
    """One job."""

    title: str
    models: Callable[[], tuple[nn.Module, nn.Module]]
    """New ones, student and teacher, the same in each call."""
    size: tuple[int, int]
    """(B, L), or (B, D)."""
    draw: Callable[[Generator, tuple[int, int]], Batch]
    """One batch of this size."""
    loss: Callable[[Any, Any, Tensor | None, nn.ModuleList], Tensor]
    """By hand: from what both models return, the labels, and the projections of the student."""
    losses: Callable[[], list[Any]]
    """The same for `fit`."""
    logits: Literal["labels", "kl"] | None = None
    """What is done with logits: soft and hard labels, or KL."""
    inputs: tuple[str, ...] = TOKENS
    """What the student gets of a batch."""
    told: tuple[str, ...] = TOKENS
    """What the teacher gets."""
    storing: Callable[[], nn.Module] | None = None
    """The teacher whose logits lie in the batches; of hookbrew they are in its cache."""
    hidden: Sequence[tuple[int, int]] = ()
    maps: Sequence[tuple[int, int]] = ()
    steps: int = 4
    """Of a round."""
    warm: int = 0
    """How many of them warm up: where all is small, the first is of another kind."""
    target: float = 1.0
    """At most so much of the CPU time of the loop by hand."""
    peak: float = 1.0
    """At most so much of its peak of live tensors."""
    lower: float | None = None
    """As `target`, with the teacher in bf16 or fp16."""
    updates: bool = False
    """Whether the optimizer is so large a part that toolkits are measured with another one, too."""

    def batches(self, device: torch.device) -> list[Batch]:
        """Two of them."""
        generator = torch.Generator().manual_seed(0)
        made = [self.draw(generator, self.size) for _ in range(2)]
        return [{key: value.to(device) for key, value in batch.items()} for batch in made]

    @property
    def asked(self) -> dict[str, bool]:
        """What a model has to be asked for where nothing hooks into it."""
        wanted = {"output_hidden_states": bool(self.hidden), "output_attentions": bool(self.maps)}
        return {name: True for name, needed in wanted.items() if needed}


def soft(own: Tensor, theirs: Tensor) -> Tensor:
    """Cross-entropy with the teacher's softened classes."""
    log_q = functional.log_softmax(own / TEMPERATURE, dim=-1)
    return -(functional.softmax(theirs / TEMPERATURE, dim=-1) * log_q).sum(-1).mean() * TEMPERATURE**2


def classified(own: Any, theirs: Any, labels: Tensor, _: nn.ModuleList) -> Tensor:
    """Soft and hard cross-entropy."""
    return soft(own.logits, theirs.logits) + functional.cross_entropy(own.logits, labels)


def matching(pairs: Sequence[tuple[int, int]], maps: Sequence[tuple[int, int]]) -> Callable[..., Tensor]:
    """Mean squared differences of hidden states, the student's projected, and of attentions."""

    def matched(own: Any, theirs: Any, _: Tensor, projections: nn.ModuleList) -> Tensor:
        total: Tensor = torch.zeros((), device=own.logits.device)
        for (ours, other), projection in zip(pairs, projections, strict=True):
            total = total + functional.mse_loss(projection(own.hidden_states[ours]), theirs.hidden_states[other])
        for ours, other in maps:
            total = total + functional.mse_loss(own.attentions[ours], theirs.attentions[other])
        return total

    return matched


def kept(pairs: Sequence[tuple[int, int]], maps: Sequence[tuple[int, int]]) -> list[Any]:
    """The same for `fit`."""
    ours, theirs = (",".join(str(pair[side]) for pair in pairs) for side in (0, 1))
    own, other = (",".join(str(pair[side]) for pair in maps) for side in (0, 1))
    hidden = hb.loss("hidden_mse", student=f"hidden[{ours}]", teacher=f"hidden[{theirs}]", projection="linear")
    return [hidden, hb.loss("attention_mse", student=f"attention[{own}]", teacher=f"attention[{other}]")]


def labelled() -> list[Any]:
    """Soft and hard cross-entropy for `fit`."""
    return [hb.loss("kd_ce", temperature=TEMPERATURE), hb.loss("ce")]


def divergence(own: Any, theirs: Any, _: Tensor, __: nn.ModuleList) -> Tensor:
    """KL over the vocabulary, all tokens."""
    log_p, log_q = (functional.log_softmax(out.logits.flatten(0, 1), dim=-1) for out in (theirs, own))
    return functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


SIZES = "BERT 12 x 256 to 3 x 128, 32 x 64 tokens"
LABELS = Work(
    title=f"logits: soft and hard labels, {SIZES}",
    models=encoders,
    size=(32, 64),
    draw=partial(tokens, words=5000, labels=4),
    loss=classified,
    losses=labelled,
    logits="labels",
    target=0.99,
    lower=0.50,
)
WORKS = {
    "logits": LABELS,
    "matches": attrs.evolve(
        LABELS,
        title=f"matches: labels, 4 hidden states, 2 attentions, {SIZES}",
        loss=lambda *given: classified(*given) + matching(HIDDEN, MAPS)(*given),
        losses=lambda: [*labelled(), *kept(HIDDEN, MAPS)],
        hidden=HIDDEN,
        maps=MAPS,
        target=0.97,
        lower=0.47,
    ),
    "features": attrs.evolve(
        LABELS,
        title=f"features: hidden states and attentions of the lower half alone, {SIZES}",
        loss=matching(EARLY, MAPS),
        losses=lambda: kept(EARLY, MAPS),
        logits=None,
        hidden=EARLY,
        maps=MAPS,
        target=0.62,
        lower=0.36,
    ),
    "vocabulary": Work(
        title="vocabulary: KL over 50k words, GPT-2 4 x 256 to 2 x 128, 4 x 256 tokens",
        models=decoders,
        size=(4, 256),
        draw=partial(tokens, words=50_000),
        loss=divergence,
        losses=lambda: [hb.loss("kl", temperature=1.0)],
        logits="kl",
        steps=3,
        target=0.65,
        peak=0.20,
        lower=0.45,
    ),
    "cached": attrs.evolve(
        LABELS,
        title="cached: soft and hard labels, logits stored, BERT 3 x 128, 32 x 64 tokens; ours in its cache",
        models=stored,
        storing=storing,
        draw=beside,
        told=("stored",),
        steps=9,
        warm=1,
        target=0.88,
        lower=None,
        updates=True,
    ),
    "tiny": attrs.evolve(
        LABELS,
        title="tiny: soft and hard labels, two layers of 64 to two of 32, 8 rows; ours with events, rows and progress",
        models=perceptrons,
        size=(8, 32),
        draw=numbers,
        inputs=("input",),
        told=("input",),
        steps=201,
        warm=1,
        target=0.98,
        lower=None,
        updates=True,
    ),
}
