"""The special ids in the configs of a model: padding, beginning, end and whatever else is written as an id."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from hookbrew.errors import SurgeryError

KEY: Final = re.compile(r"(^|_)token_(ids?|index)$")
SUPPRESSED: Final = ("suppress_tokens", "begin_suppress_tokens")
"""Ids that are never generated: one that is gone needs no mention."""
WORDS: Final = "bad_words_ids"
"""Lists of ids that are never generated together."""
PLACED: Final = ("forced_decoder_ids", "sequence_bias")
"""Ids between other numbers, or as keys."""


def specials(config: Any) -> Iterator[tuple[str, int]]:
    """The special ids of a config with their keys; none of None."""
    values = config.to_dict() if config is not None else {}
    for key, value in values.items():
        if KEY.search(key):
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, int) and not isinstance(one, bool):
                    yield key, one


def respelled(config: Any, news: Mapping[int, int], size: int) -> Any:
    """A copy of a config with the new ids; news: the new id of each old one, of which there were `size`.

    SurgeryError for a special id that has no new one.
    """
    made = copy.deepcopy(config)
    for key, value in config.to_dict().items():
        if key in PLACED and value:
            raise SurgeryError(
                f"vocabulary: {key} of the teacher names ids in a way that is not understood; set it to None"
            )
        if KEY.search(key) and value is not None:
            several = isinstance(value, list | tuple)
            ids = [new(key, old, news, size) for old in (value if several else [value])]
            setattr(made, key, ids if several else ids[0])
        elif key in SUPPRESSED and value:
            setattr(made, key, [news[old] for old in value if old in news] or None)
        elif key == WORDS and value:
            words = [[news[old] for old in word] for word in value if all(old in news for old in word)]
            setattr(made, key, words or None)
    return made


def new(key: str, old: int, news: Mapping[int, int], size: int) -> int:
    """The new id of a special one; negative numbers are no ids."""
    if old < 0:
        return old
    if old >= size:
        raise SurgeryError(
            f"vocabulary: {key} = {old} is not in the teacher's own vocabulary of {size}; set it in its config"
        )
    if old not in news:
        raise SurgeryError(f"vocabulary: {key} = {old} is dropped, and the model needs it; keep the id {old}")
    return news[old]
