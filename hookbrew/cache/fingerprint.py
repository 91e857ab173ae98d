"""What made the outputs that a cache holds, so that those of another teacher are refused and not trained on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor, nn

from hookbrew import words
from hookbrew.cache.keys import content
from hookbrew.errors import CacheError
from hookbrew.taps import sharded, unwrap

FORMAT = 1
"""Of keys and files; another one is refused."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
VOLATILE = ("_name_or_path", "name_or_path", "transformers_version")
"""What a configuration says of where a model came from, and not of what it computes."""
TOKENIZER = ("tokenizer*.json", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.model")
"""The files of a tokenizer."""


@attrs.frozen
class Fingerprint:
    """All that the outputs depend on besides the example."""

    teacher: str
    """Its class."""
    config: Mapping[str, Any]
    """Its configuration."""
    structure: str
    """A hash of its modules and their settings."""
    weights: str
    """A hash of parameters and buffers."""
    tokenizer: str | None
    """A hash, where one was given."""
    precision: str
    """What the teacher computed in: fp32, or the dtype of autocast."""
    taps: tuple[str, ...]
    """Canonical paths of what was read."""
    stored: Mapping[str, Any]
    """The kind of what is stored, its dtype and options."""
    format: int = FORMAT
    """Of keys and files."""

    def facts(self) -> dict[str, Any]:
        """As it is written into a file, and read again."""
        told: dict[str, Any] = json.loads(json.dumps(attrs.asdict(self), default=str, sort_keys=True))
        return told

    def require(self, before: Mapping[str, Any], place: object) -> None:
        """Raise CacheError unless these are the facts of a cache, with each part that differs, as it was and is."""
        parts = list(differing(before, self.facts()))
        if parts:
            raise CacheError(
                f"the cache {place} is of something else: {words.several(parts)}; "
                "name another folder, or remove this one"
            )


def fingerprint(
    teacher: nn.Module,
    stored: Mapping[str, Any],
    taps: Sequence[str] = (),
    *,
    tokenizer: Any = None,
    precision: str = "fp32",
) -> Fingerprint:
    """Look at a teacher, and read its weights once.

    stored: what the kind says of itself. taps: canonical paths. tokenizer: its folder, the object, or None.
    Raises CacheError for a sharded teacher, whose weights no process has, and for a tokenizer that is none.
    """
    model = unwrap(teacher)
    if sharded(model):
        raise CacheError(
            "a teacher that FSDP2 has sharded has no weights to tell it by; build the cache with a whole one"
        )
    return Fingerprint(
        f"{type(model).__module__}.{type(model).__qualname__}",
        configured(model),
        hashed(ADDRESS.sub("", repr(model)).encode()),
        weighed(model),
        None if tokenizer is None else vocabulary(tokenizer),
        precision,
        tuple(taps),
        dict(stored),
    )


def configured(model: nn.Module) -> dict[str, Any]:
    """The configuration of a model of transformers, but for where it came from; nothing of another one."""
    config = getattr(model, "config", None)
    found = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    return {name: value for name, value in found.items() if name not in VOLATILE}


def weighed(model: nn.Module) -> str:
    """A hash of names, dtypes, shapes and numbers, in the order of names; the same on every device."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(named(model)):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(content(tensor.detach().cpu()))  # one at a time: a teacher may fill its device
    return found.hexdigest()


def named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those that no checkpoint has too; what is shared comes once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def vocabulary(tokenizer: Any) -> str:
    """A hash of the files of a tokenizer in a folder, or of what its object maps to ids; raises CacheError."""
    if isinstance(tokenizer, str | Path):
        files = sorted({path for pattern in TOKENIZER for path in Path(tokenizer).glob(pattern) if path.is_file()})
        if not files:
            raise CacheError(f"{tokenizer} has no tokenizer: there is no {words.several(TOKENIZER)}")
        return hashed(*(part for path in files for part in (path.name.encode(), path.read_bytes())))
    if not hasattr(tokenizer, "get_vocab"):
        raise CacheError(f"a {type(tokenizer).__name__} is no tokenizer: it has no get_vocab()")
    special = getattr(tokenizer, "special_tokens_map", {})
    parts = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), special]
    return hashed(json.dumps(parts, default=str, sort_keys=True).encode())


def hashed(*parts: bytes) -> str:
    """One hash of several texts, each with its length."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(b"%d;" % len(part) + part)
    return found.hexdigest()


def differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`weights 12ab before, 34cd now` for each part that differs; parts of parts by their dotted names."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differing(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} {told(old)} before, {told(new)} now"


def told(value: Any) -> str:
    """A value as a message has it."""
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
