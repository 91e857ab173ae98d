"""When a checkpoint is made, and what happens when it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from hookbrew.errors import CheckpointError, PeerError, PreemptedError
from hookbrew.loop.shards import put
from hookbrew.loop.snapshot import restored, taken
from hookbrew.loop.training import Training
from hookbrew.shield import shielded
from hookbrew.store import Checkpoint, Store

log = logging.getLogger("hookbrew")
MOST = 3
"""So many failures in a row end the training: what it does would be lost."""


@attrs.define
class Saver:
    """Makes checkpoints of a training that has a store."""

    loop: Training
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    """What else the manifest says: what has to be the same for a resume to be exact."""
    saved: int | None = None
    """The step of the last one."""
    failures: int = 0
    """How many in a row could not be written."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Bring the training to where the checkpoint was made."""
        restored(self.loop, checkpoint)
        self.saved = self.loop.state.step

    def heed(self) -> None:
        """End the training if a signal asked for it, after a checkpoint; raises PreemptedError."""
        state = self.loop.state
        if self.loop.accord.end is not None and state.unfinished:
            self(must=True)
            raise PreemptedError(f"{self.loop.accord.end} came; stopped after step {state.step} of {state.total_steps}")

    def asked(self) -> None:
        """Make one if a callback asked for it; raises CheckpointError for the third in a row that fails."""
        if self.loop.accord.save:
            self(must=self.failures + 1 == MOST)
            self.loop.accord.settle(self.loop.state)  # callbacks may have asked for something meanwhile

    def __call__(self, *, must: bool = False) -> None:
        """Make one of this step, if there is a store and none was made yet.

        One that cannot be written is tried once more with all older ones but the newest gone; then the training goes
        on with a warning, or if it must be written, the failure is raised (CheckpointError).
        """
        state = self.loop.state
        state.save_requested = False
        if state.store is None or self.saved == state.step:
            return
        with shielded():
            self.make(state.store, must=must)

    def make(self, store: Store, *, must: bool) -> None:
        """`__call__`, when it is known that one is to be made."""
        state = self.loop.state
        self.loop.dispatch.fire("checkpoint_saving", state)
        files, counters, shards = taken(self.loop)
        try:
            self.write(store, files, {**counters, "exact": dict(self.facts)}, shards)
        except (CheckpointError, PeerError) as error:
            self.failures += 1
            self.loop.dispatch.fire("checkpoint_failed", state)
            if must:
                raise
            log.warning("%s; the training goes on, and older ones stand", error)
            return
        self.saved, self.failures = state.step, 0
        if state.ranks.main:
            store.prune(state.kept, state.step)
        self.loop.dispatch.fire("checkpoint_saved", state)

    def write(
        self, store: Store, files: Mapping[str, bytes], facts: Mapping[str, Any], shards: Mapping[str, Tensor]
    ) -> None:
        """Write one; where there is no space, older ones make it."""
        try:
            self.written(store, files, facts, shards)
        except (CheckpointError, PeerError):
            if self.loop.ranks.main:
                attrs.evolve(store, keep_last=1, keep_every=None).prune(self.loop.state.kept, self.saved)
            self.written(store, files, facts, shards)

    def written(
        self, store: Store, files: Mapping[str, bytes], facts: Mapping[str, Any], shards: Mapping[str, Tensor]
    ) -> None:
        """One try: the first process makes the folder and the files, and each puts its shards there."""
        step, ranks = self.loop.state.step, self.loop.ranks
        folder = ranks.first(lambda: store.begin(step))
        if shards:
            try:
                put(shards, folder, ranks)
            except OSError as error:
                if ranks.main:
                    store.clean()
                raise store.unwritten(step, error) from error
        ranks.first(lambda: store.finish(step, files, facts))
