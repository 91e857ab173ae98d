"""Other toolkits, one a module: each has `train`, which makes the call that trains a side, as a user of it would.

All get what serves them best: the fused AdamW, and hooks where they do not bring their own way to hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import MappingProxyType
from typing import NamedTuple

from side import Side


class Peer(NamedTuple):
    """A toolkit."""

    module: str
    """Of this package."""
    packages: tuple[str, ...]
    """What has to be installed; the first is the one whose version is told."""
    lacks: Mapping[str, str] = MappingProxyType({})
    """The jobs that it cannot do, and why."""
    fused: bool = False
    """Whether the fused AdamW is what it takes by itself."""

    @property
    def missing(self) -> str | None:
        """A package that is not installed."""
        return next((name for name in self.packages if find_spec(name) is None), None)

    @property
    def version(self) -> str:
        """Of the first package."""
        return version(self.packages[0])

    def train(self, side: Side) -> Callable[[], None]:
        """The call that trains a side."""
        found: Callable[[], None] = import_module(f"toolkits.{self.module}").train(side)
        return found


PEERS = {
    "TextBrewer": Peer("textbrewer", ("textbrewer",)),
    "torchdistill": Peer("torchdistill", ("torchdistill",), {"cached": "release 1.1.5 has no cache of outputs"}),
    "Lightning": Peer("lightning", ("lightning",)),
    "Trainer of transformers": Peer("trainer", ("transformers", "accelerate"), fused=True),
}
