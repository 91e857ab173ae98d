"""What a callback sees: one object for the whole run, the same in every event."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import FolderError
from hookbrew.objective import TASK
from hookbrew.ranks import Ranks
from hookbrew.store import Store


@attrs.define(kw_only=True)
class State:
    """The state of a run. Tensors stay on their device: reading one as a number is the reader's own sync."""

    student: nn.Module
    teacher: nn.Module | None
    extras: nn.Module
    """What is trained besides the student: projections, and losses that learn or remember."""
    device: torch.device
    total_steps: int
    """Optimizer updates of the whole run."""
    total_epochs: int | None
    """Passes over the data, or None when the length was given in steps."""
    announce: Callable[[str], None]
    """Fire an event on behalf of a callback: `state.announce("checkpoint_saved")`."""
    folder: Path | None = None
    """The run folder; None when nothing is to be written (the Python call without `output`)."""
    several: bool = False
    """Whether there are several tasks, of which each batch says its own."""
    ranks: Ranks = attrs.field(factory=Ranks)
    """The processes that train this student together; `ranks.main` is the one that writes files."""
    partial: bool = False
    """Whether steps leave parts of the student out, the same in all processes, which else wait for their gradients; a
    callback that does so says it in `run_start`."""

    step: int = 0
    """The optimizer update that is running or was last made, from 1."""
    epoch: int = 0
    """The pass over the data, from 1."""
    batches: int = 0
    """Batches of this pass that have been trained on."""
    samples_seen: int = 0
    """Training samples whose gradients were used, by all processes together."""
    micro_batch_size: int | None = None
    """Samples of one forward pass, since memory was short; None when batches are whole."""
    stop_reason: str | None = None

    batch: dict[str, Any] = attrs.field(factory=dict)
    task: str | None = None
    """The task that `batch` is of; None in a run that has no tasks."""
    student_out: Any = None
    teacher_out: Any = None
    logits: Any = None
    """The student's logits in `eval_batch_end`: a tensor, or a list where `data.logits` names several."""
    labels: Any = None
    """The labels in `eval_batch_end`, one tensor for each of logits, -100 where there are none; None if the data has
    no labels."""
    loss: Tensor | None = None
    grad_norm: Tensor | None = None

    record: dict[str, float] = attrs.field(factory=dict)
    metrics: dict[str, float] = attrs.field(factory=dict)
    """The results of the last evaluation; whole after `eval_end`."""
    last_eval_step: int | None = None
    """The step of the last evaluation that is over; None before and during the first."""
    exception: BaseException | None = None
    eval_requested: bool = False
    save_requested: bool = False
    store: Store | None = None
    """Where checkpoints go; None if none are made."""
    kept: set[int] = attrs.field(factory=set)
    """Steps whose checkpoints stay, whatever the store keeps: the best one's."""
    degraded: list[dict[str, Any]] = attrs.field(factory=list)
    """Optional callbacks that were disabled: which, in which event and step, and for what error."""
    interrupted: str | None = None
    """The signal that asks for an end: a checkpoint is made after this step, and the training can be resumed."""

    def see(self, batch: dict[str, Any]) -> None:
        """Take in the batch that is next."""
        self.batch, self.task = batch, batch[TASK] if self.several else None

    def request_stop(self, reason: str) -> None:
        """End the training after this step; the first reason given is kept."""
        self.stop_reason = self.stop_reason or reason

    def request_eval(self) -> None:
        """Evaluate after this step."""
        self.eval_requested = True

    def request_save(self) -> None:
        """Make a checkpoint after this step, and its evaluation if one is due."""
        self.save_requested = True

    def require_folder(self, who: str) -> Path:
        """The run folder; raises FolderError for a callback `who` that writes into it when there is none."""
        if self.folder is None:
            raise FolderError(f"callback {who!r} writes into the run folder, and there is none: give one with output=")
        return self.folder

    @property
    def unfinished(self) -> bool:
        """Whether there is another step to make."""
        return self.step < self.total_steps and not self.stop_reason

    @property
    def progress(self) -> float:
        """How far the training is at the start of this step, from 0 to just under 1."""
        return max(0, self.step - 1) / self.total_steps
