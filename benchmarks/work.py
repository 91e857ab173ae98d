"""The jobs that benchmarks/peers.py gives to everybody: models, batches, and the loss as a person would write it.

B batch, L tokens, D features, C classes, H heads, V vocabulary. Nothing is padded, so that all conventions agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

import hookbrew as hb

TEMPERATURE = 4.0
HIDDEN = ((0, 0), (1, 4), (2, 8), (3, 12))
"""Numbers of hidden states that are matched, student and teacher; 0 is what the embeddings give."""
EARLY = ((0, 0), (1, 2), (2, 4), (3, 6))
MAPS = ((0, 3), (2, 5))
"""Numbers of the layers whose attentions are matched."""
Batch = dict[str, Tensor]


@attrs.frozen(kw_only=True)
class Work:
    """One job."""

    title: str
    models: Callable[[], tuple[nn.Module, nn.Module]]
    """New ones, student and teacher, the same in each call."""
    batch: tuple[int, int]
    """(B, L)."""
    words: int
    """V."""
    labels: int | None
    """C; None where labels are the tokens themselves, and nothing reads them."""
    loss: Callable[[Any, Any, Tensor, nn.ModuleList], Tensor]
    """By hand: from what both models return, the labels, and the projections of the student."""
    losses: Callable[[], list[Any]]
    """The same for `fit`."""
    hidden: Sequence[tuple[int, int]] = ()
    maps: Sequence[tuple[int, int]] = ()
    target: float = 1.0
    """At most so much of the CPU time of the loop by hand."""

    def batches(self) -> list[Batch]:
        """Two of them."""
        generator = torch.Generator().manual_seed(0)
        made = []
        for _ in range(2):
            ids = torch.randint(5, self.words, self.batch, generator=generator)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if self.labels is not None:
                batch["labels"] = torch.randint(self.labels, self.batch[:1], generator=generator)
            made.append(batch)
        return made

    @property
    def asked(self) -> dict[str, bool]:
        """What a model has to be asked for by hand."""
        wanted = {"output_hidden_states": bool(self.hidden), "output_attentions": bool(self.maps)}
        return {name: True for name, needed in wanted.items() if needed}


def bert(width: int, layers: int) -> nn.Module:
    """A BERT of four heads without dropout, with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 4}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
    config = BertConfig(vocab_size=5000, intermediate_size=4 * width, **sizes, **none)
    return BertForSequenceClassification(config)


def gpt(width: int, layers: int) -> nn.Module:
    """A GPT-2 with a vocabulary of 50k."""
    from transformers import GPT2Config, GPT2LMHeadModel

    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False, "bos_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50_000, n_embd=width, n_layer=layers, n_head=4, eos_token_id=0, **none)
    )


def encoders() -> tuple[nn.Module, nn.Module]:
    """A student of 3 layers, 128 wide, and a teacher of 12, 256 wide."""
    torch.manual_seed(0)
    return bert(128, 3), bert(256, 12)


def decoders() -> tuple[nn.Module, nn.Module]:
    """A student of 2 layers, 128 wide, and a teacher of 4, 256 wide."""
    torch.manual_seed(0)
    return gpt(128, 2), gpt(256, 4)


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
    batch=(32, 64),
    words=5000,
    labels=4,
    loss=classified,
    losses=labelled,
    target=0.99,
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
    ),
    "features": attrs.evolve(
        LABELS,
        title=f"features: hidden states and attentions of the lower half alone, {SIZES}",
        loss=matching(EARLY, MAPS),
        losses=lambda: kept(EARLY, MAPS),
        hidden=EARLY,
        maps=MAPS,
        target=0.62,
    ),
    "vocabulary": Work(
        title="vocabulary: KL over 50k words, GPT-2 4 x 256 to 2 x 128, 4 x 256 tokens",
        models=decoders,
        batch=(4, 256),
        words=50_000,
        labels=None,
        loss=divergence,
        losses=lambda: [hb.loss("kl", temperature=1.0)],
        target=0.65,
    ),
}
