"""Signals ask for an end or a checkpoint; the training heeds them between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from hookbrew.loop import State

ENDING = ("SIGINT", "SIGTERM")
SAVING = "SIGUSR1"


@contextmanager
def heeded(states: Sequence[State]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM ends the training after its step, with a checkpoint; a second one at once.

    SIGUSR1 asks for a checkpoint, and the training goes on. The handlers only say so: what happens, happens in the
    loop. Outside the main thread nothing is changed, for Python takes no handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        if any(state.interrupted for state in states):
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        for state in states:
            state.interrupted = name
        tell(f"{name}: a checkpoint after this step, then the end; once more ends at once, without one")

    def save(number: int, frame: FrameType | None) -> None:
        for state in states:
            state.request_save()

    wanted = {name: end for name in ENDING} | {SAVING: save}
    known = {getattr(signal, name): handler for name, handler in wanted.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in known.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(line: str) -> None:
    """Write to stderr, past Python's buffer: a handler may have come in the middle of a print."""
    os.write(2, f"\n{line}\n".encode())
