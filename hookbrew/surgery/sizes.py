"""The widths of a transformers model as its config spells them: hidden, heads and the feed-forward between."""

from __future__ import annotations

import copy
from typing import Any, Final

import attrs
from torch import nn

from hookbrew import words
from hookbrew.errors import SurgeryError
from hookbrew.surgery.rebuild import pretrained

HIDDEN: Final = ("hidden_size", "d_model", "n_embd", "dim")
HEADS: Final = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads", "n_head")
GROUPS: Final = ("num_key_value_heads",)
FFN: Final = (
    "intermediate_size", "d_ff", "n_inner", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"
)  # fmt: skip
"""Words of configs, not of models: what each of them really changes is measured (axes.py)."""
FOLLOWING: Final = ("pooler_hidden_size", "word_embed_proj_dim", "embedding_size")
"""Widths of their own that are the hidden width in most configs, and stay so."""


@attrs.frozen
class Sizes:
    """How wide a model is."""

    hidden: int
    heads: int
    groups: int
    """Heads of keys and values; a group is one of them with the heads of queries that read it."""
    ffn: int | None
    """None if the config has no word for it."""

    @property
    def shared(self) -> int:
        """Heads of queries in a group."""
        return self.heads // self.groups

    def __str__(self) -> str:
        return f"hidden {self.hidden}, heads {self.heads}, ffn {self.ffn}"


def configured(model: nn.Module) -> Any:
    """The config of a transformers model, which it can be built anew from; SurgeryError for any other model."""
    config: Any = getattr(model, "config", None)
    if not pretrained(model):
        raise SurgeryError(
            f"{type(model).__name__} cannot be made narrower: it has no config of transformers that it could be built "
            "anew from, and how its parts read their widths is not known; build the smaller model yourself"
        )
    parts = list(getattr(type(config), "sub_configs", None) or {})
    if parts:
        raise SurgeryError(
            f"{type(model).__name__} cannot be made narrower: its config is made of several ({words.several(parts)}), "
            "each with a width of its own; make the inner models narrower, one by one"
        )
    return config


def agreed(config: Any, keys: tuple[str, ...]) -> tuple[tuple[str, ...], int | None]:
    """The words that a config has of these, without synonyms, and the one number that they all say.

    SurgeryError if they say several: one request cannot be meant for all of them.
    """
    synonyms = getattr(type(config), "attribute_map", None) or {}
    found = {key: getattr(config, key) for key in keys if key not in synonyms and hasattr(config, key)}
    for key in keys:
        if key in synonyms and hasattr(config, key):
            found.setdefault(synonyms[key], getattr(config, key))
    numbers = {value for value in found.values() if value is not None}
    if len(numbers) > 1 or any(not isinstance(value, int) for value in numbers):
        told = ", ".join(f"{key} = {value}" for key, value in found.items())
        raise SurgeryError(f"{type(config).__name__} has several widths of one kind, {told}: only one can be cut")
    return tuple(found), next(iter(numbers), None)


def measured(config: Any) -> Sizes:
    """The widths that a config says; SurgeryError names the word that is missing."""
    _, hidden = agreed(config, HIDDEN)
    _, heads = agreed(config, HEADS)
    _, groups = agreed(config, GROUPS)
    keys, ffn = agreed(config, FFN)
    if hidden is None or heads is None:
        missing = "hidden_size" if hidden is None else "num_attention_heads"
        raise SurgeryError(f"{type(config).__name__} says no {missing}, so its width cannot be cut")
    if ffn is None and keys == ("n_inner",):
        ffn = 4 * hidden  # what GPT-2 and those like it mean by None
    return Sizes(hidden, heads, groups or heads, ffn)


def resized(config: Any, sizes: Sizes, head: int | None = None) -> Any:
    """A copy of a config with other widths; head: the features of a head, where they do not follow from the rest.

    SurgeryError with the reason of a config that refuses.
    """
    before = measured(config)
    made = copy.deepcopy(config)
    changes: dict[str, int | None] = {}
    for key in (*agreed(config, HIDDEN)[0], *(k for k in FOLLOWING if getattr(config, k, None) == before.hidden)):
        changes[key] = sizes.hidden
    changes |= dict.fromkeys(agreed(config, HEADS)[0], sizes.heads)
    changes |= {key: sizes.groups for key in agreed(config, GROUPS)[0] if getattr(config, key) is not None}
    implied = getattr(config, "n_inner", 0) is None and sizes.ffn == 4 * sizes.hidden
    if sizes.ffn is not None and not implied:
        changes |= dict.fromkeys(agreed(config, FFN)[0], sizes.ffn)
    if head is not None:
        changes["head_dim"] = head
    try:
        for key, value in changes.items():
            setattr(made, key, value)
        if hasattr(made, "validate"):
            made.validate()
    except Exception as error:  # validation has exceptions of its own, of several packages
        reason = " ".join(str(error.__cause__ or error).split())
        raise SurgeryError(f"{type(config).__name__} refuses {sizes}: {reason}") from error
    return made
