"""What keeps a run whole is not torn by the death of a process that loads data.

torch hears of it in a handler of SIGCHLD, and raises there: in whatever line the training is, also between the files of
a checkpoint or while the status of a run that failed is written.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def shielded() -> Iterator[None]:
    """The handler of SIGCHLD waits until what is inside is over, and then does what it would have done.

    An exception from inside goes first. Outside the main thread, and where no handler is set, nothing is changed.
    """
    child: int | None = getattr(signal, "SIGCHLD", None)
    if child is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, came = signal.getsignal(child), list[FrameType | None]()
    if not callable(before):
        yield
        return
    signal.signal(child, lambda number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(child, before)
    if came:
        before(child, came[-1])
