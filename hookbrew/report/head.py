"""What is said of a run before its numbers: how it went, when, and with what."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from hookbrew.report.read import Run
from hookbrew.words import several

STATES = ("done", "running", "stopped", "failed", "preempted")
"""Words of a status that have a colour."""
UNFINISHED = "no end was recorded: it is under way, or its process was killed"


def state(run: Run) -> str:
    """The word of the status."""
    return str(run.status.get("status", "unknown"))


def why(run: Run) -> str:
    """The reason of the status, in a sentence or none."""
    reason = run.status.get("reason")
    told = UNFINISHED if state(run) == "running" else str(reason) if reason else ""
    stage = run.status.get("stage")
    where = f"in stage {stage}" if stage and state(run) != "done" else ""
    return ": ".join(part for part in (where, told) if part)


def facts(run: Run) -> list[tuple[str, str]]:
    """Names and values, as a person reads them; what is not known is left out."""
    env = run.facts
    total = run.status.get("total_steps")
    told = [
        ("Folder", str(run.folder)),
        ("Steps", f"{run.steps:,}" + (f" of {total:,}" if type(total) is int and not run.staged else "")),
        ("Stages", staged(run) if run.staged else ""),
        ("Began", clock(run.began)),
        ("Last number" if state(run) == "running" else "Ended", clock(run.ended)),
        ("Took", lasted(run.began, run.ended)),
        ("Versions", listed({"python": env.get("python", ""), **mapping(env.get("packages"))})),
        ("Plugins", listed(mapping(env.get("plugins")))),
        ("Machine", str(env.get("platform", ""))),
        ("Command", command(env.get("argv"))),
    ]
    return [(name, value) for name, value in told if value]


def staged(run: Run) -> str:
    """The stages that were begun, with the numbers that a plot has for them."""
    return ", ".join(f"{number}: {part.name} ({part.steps:,} steps)" for number, part in enumerate(run.parts, 1))


def notes(run: Run) -> list[str]:
    """What the page cannot show of a run, and why."""
    made = [disabled(told) for told in listed_in(run.status, "degraded")]
    for part in run.parts:
        of = f" of stage {part.name}" if part.name else ""
        rows = part.rows
        if not rows.rows:
            made.append(f"There are no rows of metrics{of}.")
        if rows.unread:
            made.append(f"Left out{of}: {plural(rows.unread, 'line')} of the metrics that could not be read.")
        if rows.repeated:
            made.append(f"Left out{of}: {plural(rows.repeated, 'row')} of steps that were made again after a resume.")
        if rows.wordy:
            made.append(f"Not drawn{of}, as it holds no numbers everywhere: {several(rows.wordy)}.")
    if run.tree is None:
        made.append("resolved.toml is no TOML; it is shown as it is.")
    return made


def disabled(told: Mapping[str, Any]) -> str:
    """A callback that raised, and without which the run went on."""
    name, event, step, error = (told.get(key, "?") for key in ("callback", "event", "step", "error"))
    return f"The callback {name} was disabled in event {event} at step {step}: {error}."


def listed_in(status: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The mappings of a list in a status: files may say anything."""
    found = status.get(key)
    return [value for value in found if isinstance(value, Mapping)] if isinstance(found, list) else []


def plural(count: int, noun: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: files may say anything."""
    return value if isinstance(value, Mapping) else {}


def listed(versions: Mapping[str, Any]) -> str:
    """Names with their versions."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def command(argv: Any) -> str:
    """A command line that can be pasted."""
    return shlex.join(map(str, argv)) if isinstance(argv, list) else ""


def clock(moment: datetime | None) -> str:
    """A time in UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else ""


def lasted(began: datetime | None, ended: datetime | None) -> str:
    """Hours, minutes and seconds; '' if one end is not known or they are not in order."""
    seconds = int((ended - began).total_seconds()) if began and ended else -1
    if seconds < 0:
        return ""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s" if minutes else f"{second} s"


def size(count: int) -> str:
    """Bytes in the largest unit that fits."""
    number = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:,.4g} {unit}"
        number /= 1024
    return f"{number:,.2f} GiB"
