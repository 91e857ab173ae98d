"""Where event files of TensorBoard are written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def board(folder: Path, step: int, **options: Any) -> Any:
    """A writer whose file is read after those that are there; what they say of `step` and later steps is dropped.

    TensorBoard reads files in the order of their names: the second, the host, the process, a number without zeros
    before it. Two files of one second may be read the wrong way round, and then steps of both are lost, so it waits.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes seconds

    while [*folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")]:
        time.sleep(0.02)
    return SummaryWriter(str(folder), purge_step=step, **options)
