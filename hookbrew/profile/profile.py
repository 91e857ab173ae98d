"""Some steps of a training are measured on the way, and it goes on.

Four kinds of steps, one after the other: those that warm up; those that are timed as a whole, with nothing attached;
those whose parts are timed; and those of which torch's profiler makes a trace. The last are not timed, for the profiler
itself takes time, and nothing is attached any more when they are over.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import attrs
import torch

from hookbrew import folder
from hookbrew.errors import FolderError
from hookbrew.loop import Batch, Loop
from hookbrew.profile.result import Result, counted
from hookbrew.profile.ruler import Clock, Labels, wait, within
from hookbrew.profile.spans import replaced, spanned

log = logging.getLogger("hookbrew")
FOLDER = "profile"
TRACE = "trace.json.gz"
WARM, TRACED = 5, 3
"""Steps before anything is timed, and those of the trace; fewer of a short training."""
KINDS = ("warm", "plain", "parts", "trace")


class Around(Protocol):
    """What a run may be given to look at its trainings."""

    def around(self, loop: Loop, where: Path) -> AbstractContextManager[None]:
        """A training is run inside; where: the folder of its run."""


@attrs.frozen(kw_only=True)
class Profiling:
    """How a run is profiled."""

    show: Callable[[Result, Path], object]
    """Is given what was found, and the folder where it was written, as soon as it is known."""
    steps: int = 20
    """How many steps are timed as a whole, and again part by part."""

    def around(self, loop: Loop, where: Path) -> AbstractContextManager[None]:
        """What is run inside is profiled by the first process, into a folder of the run folder."""
        return profiled(loop, where, self) if loop.ranks.main else nullcontext()


@contextmanager
def profiled(loop: Loop, where: Path, how: Profiling) -> Iterator[None]:
    """A training that is run inside is profiled; afterwards nothing is left on anything."""
    profile = Profile(loop, where, how)
    with replaced(loop.feed, "epoch", profile.epoch(loop.feed.epoch)):
        try:
            yield
        except KeyboardInterrupt:  # it is to end at once
            profile.drop()
            raise
        except BaseException:
            profile.finish()
            raise
        else:
            profile.finish()
        finally:
            if not profile.shown:
                log.warning("note: --profile has nothing to show: the run ended before a step was measured")


def shares(left: int, wanted: int) -> dict[str, int]:
    """How many steps of each kind, of those that are left: at least one is timed part by part."""
    traced = min(TRACED, max(left // 4, int(left > 1)))
    warm = min(WARM, left // 4)
    timed = max(0, left - traced - warm)
    parts = min(wanted, timed - timed // 2)
    return {"warm": warm, "plain": min(wanted, timed - parts), "parts": parts, "trace": traced}


class Profile:
    """What is measured of one training. A step is what lies between two first requests for data."""

    def __init__(self, loop: Loop, where: Path, how: Profiling) -> None:
        self.shown = False
        self._loop, self._where, self._how = loop, where / FOLDER, how
        self._shares: dict[str, int] = {}
        self._kind, self._left, self._step = "", 0, -1
        self._ruler: Clock | Labels | None = None
        self._attached = ExitStack()
        self._last = 0.0
        self._plain: list[float] = []
        self._samples = [0, 0]
        self._parts: list[Any] = []
        self._first: dict[str, int] = {}
        self._tracer: Any = None
        self._tracing = False
        self._traced = 0
        self._memory: dict[str, int] = {}
        self._over = False

    def epoch(self, batches: Callable[[int, int], Iterator[Batch]]) -> Callable[..., Iterator[Batch]]:
        """The batches of an epoch, each request for one noted, until all is measured."""

        def timed(number: int, start: int = 0) -> Iterator[Batch]:
            given = batches(number, start)
            while not self._over:
                self.asked()
                with nullcontext() if self._ruler is None else within(self._ruler, ("data", "")):
                    batch = next(given, None)
                if batch is None:
                    return
                yield batch
            yield from given

        return timed

    def asked(self) -> None:
        """A batch is asked for: if it is the first since a step, that is over."""
        step = self._loop.state.step
        if step == self._step:
            return
        if self._step < 0:
            self._shares = shares(self._loop.state.total_steps - step, self._how.steps)
            self._begin("warm", step)
        else:
            self._count(step)
        self._step = step
        while self._left == 0 and not self._over:
            self._leave()
            later = KINDS[KINDS.index(self._kind) + 1 :]
            if later:
                self._begin(later[0], step)
            else:
                self.finish()

    def _count(self, step: int) -> None:
        """A step is over."""
        self._left -= 1
        if self._kind == "plain":
            wait(self._loop.device)
            now = time.perf_counter()
            self._plain.append(now - self._last)
            self._last = now
        elif isinstance(self._ruler, Clock):
            self._parts.append(self._ruler.step())
        elif isinstance(self._ruler, Labels):
            self._traced += 1
            if self._left:
                self._ruler.step(step + 1)

    def _begin(self, kind: str, step: int) -> None:
        """Steps of another kind come."""
        self._kind, self._left, self._first[kind] = kind, self._shares[kind], step + 1
        if not self._left:
            return
        loop, device = self._loop, self._loop.device
        if kind == "plain":
            wait(device)
            self._samples[0] = loop.state.samples_seen
            self._last = time.perf_counter()
        elif kind == "parts":
            self._samples[1] = loop.state.samples_seen
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            self._ruler = Clock(device)
            self._attached.enter_context(spanned(loop, self._ruler))
            self._ruler.step()  # what was attached takes no time of the first step
        elif kind == "trace":
            activity = torch.profiler.ProfilerActivity
            kinds = [activity.CPU, *([activity.CUDA] if device.type == "cuda" else [])]
            self._tracer = torch.profiler.profile(activities=kinds)
            with silent():
                self._tracer.start()
            self._tracing = True
            self._ruler = Labels()
            self._attached.callback(self._ruler.end, 0)
            self._attached.enter_context(spanned(loop, self._ruler))
            self._ruler.step(step + 1)

    def _leave(self) -> None:
        """Take off what steps of this kind needed."""
        if self._kind == "parts" and self._ruler is not None:
            self._memory = peaks(self._loop.device)
        self._attached.close()
        self._ruler = None
        if self._tracing:
            self._tracing = False
            self._tracer.stop()  # a second time would end the process

    def drop(self) -> None:
        """Measure no more; nothing is written."""
        if not self._over:
            self._over = True
            self._leave()

    def finish(self) -> None:
        """Measure no more, and write and show what is known. A folder that cannot be written ends no training."""
        if self._over:
            return
        self.drop()
        if not self._parts:
            return
        try:
            self._where.mkdir(parents=True, exist_ok=True)
            traced = self._trace() if self._traced else None
            result = self._result(traced)
            folder.write(self._where / "summary.json", result.json())
        except (OSError, FolderError) as error:
            log.warning("the profile could not be written: %s; the training goes on", error)
            return
        finally:
            self._tracer = None
        self.shown = True
        self._how.show(result, self._where)

    def _trace(self) -> tuple[int, int]:
        """Write the trace, as a whole or not at all; the first and the last of its steps."""
        fresh = self._where / f".new-{TRACE}"
        try:
            self._tracer.export_chrome_trace(str(fresh))
            fresh.replace(self._where / TRACE)
        finally:
            fresh.unlink(missing_ok=True)
        first = self._first["trace"]
        return first, first + self._traced - 1

    def _result(self, traced: tuple[int, int] | None) -> Result:
        loop, plain = self._loop, self._plain
        middle = median(plain) if plain else None
        seen = self._samples[1] - self._samples[0]
        facts = {
            "device": str(loop.device),
            "precision": loop.train.precision,
            "processes": loop.ranks.size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        return counted(
            self._parts,
            self._first["parts"],
            plain=None if middle is None else (len(plain), 1e3 * middle),
            rate=None if middle is None else seen / len(plain) / middle,
            traced=traced,
            memory=self._memory,
            facts=facts,
        )


@contextmanager
def silent() -> Iterator[None]:
    """The profiler does not write its own name to stderr, unless somebody has said what it writes."""
    with ExitStack() as stack:
        if "KINETO_LOG_LEVEL" not in os.environ:  # which it reads once, when it is used first
            os.environ["KINETO_LOG_LEVEL"] = "9"
            stack.callback(os.environ.pop, "KINETO_LOG_LEVEL", None)
        yield


def peaks(device: torch.device) -> dict[str, int]:
    """The most bytes that a GPU had allocated since its count began, and that the process ever had."""
    found = {}
    if device.type == "cuda":
        found["allocated"] = int(torch.cuda.max_memory_allocated(device))
    with suppress(ImportError):  # Windows has none
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return found
