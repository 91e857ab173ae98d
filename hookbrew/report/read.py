"""A run folder, read: of several stages, each with what it left in its own folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from hookbrew import words
from hookbrew.errors import FolderError
from hookbrew.folder import STATUS
from hookbrew.report.rows import Rows, is_step, load
from hookbrew.report.weights import Weights, weighed


@attrs.frozen
class Part:
    """One training: a whole run, or a stage of it."""

    name: str
    """'' of a run without stages."""
    folder: Path
    status: Mapping[str, Any]
    metrics: Path
    """The file of the rows."""
    rows: Rows
    final: Weights | None
    images: tuple[Path, ...]

    @property
    def steps(self) -> int:
        """The optimizer updates that were made, as far as the folder says."""
        step = self.status.get("step")
        return max(step if is_step(step) else 0, self.rows.last)


@attrs.frozen
class Run:
    """What is known of one run."""

    label: str
    """Short, and another one for each run of a page."""
    folder: Path
    status: Mapping[str, Any]
    facts: Mapping[str, Any]
    """Versions, plugins, command line."""
    text: str
    """The resolved configuration as it is written; '' without one."""
    tree: Mapping[str, Any] | None
    """The same, parsed; None if it is no TOML."""
    parts: tuple[Part, ...]
    began: datetime | None
    ended: datetime | None
    """When the status was last written; of a run that is not over, when a number was."""

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(part.steps for part in self.parts)

    @property
    def staged(self) -> bool:
        """Whether it trains in several stages."""
        return bool(self.parts[0].name)


def read(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; raises FolderError for one that is none, or is named twice."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        require(folder)
        real = folder.resolve()
        if real in seen:
            raise FolderError(f"{folder} is named twice" + (f", also as {seen[real]}" if seen[real] != folder else ""))
        seen[real] = folder
    return [opened(folder, label) for folder, label in zip(seen, labels(list(seen)), strict=True)]


def require(folder: Path) -> None:
    """Raise FolderError unless a folder is one of a run; the message names the nearest that is."""
    if (folder / STATUS).is_file():
        return
    lack = "there is no such folder" if not folder.exists() else f"expected a folder with {STATUS}"
    inside = [str(folder / name) for name in runs(folder)]
    near = [str(folder.parent / name) for name in runs(folder.parent)]
    raise FolderError(f"{folder} is no run folder: {lack}; {words.hint(str(folder), inside or near)}")


def runs(folder: Path) -> list[str]:
    """The names of the run folders in a folder."""
    try:
        return sorted(path.name for path in folder.iterdir() if (path / STATUS).is_file())
    except OSError:
        return []


def labels(folders: Sequence[Path]) -> list[str]:
    """For each folder the end of its path that no other has."""
    found = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        depth = 1
        while depth < len(folder.parts) and any(parts[-depth:] == folder.parts[-depth:] for parts in others):
            depth += 1
        found.append("/".join(folder.parts[-depth:]))
    return found


def opened(folder: Path, label: str) -> Run:
    """Read all that is in a run folder; what is missing or broken is left out."""
    text = content(folder / "resolved.toml")
    tree = toml(text)
    status, facts = table(folder / STATUS), table(folder / "env.json")
    parts = tuple(trained(folder, tree or {}, status))
    over = status.get("status") != "running"
    ended = moment(status.get("time")) if over else written(parts)
    return Run(label, folder, status, facts, text, tree, parts, moment(facts.get("started")), ended)


def trained(folder: Path, tree: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Part]:
    """The stages that were begun, in their order, or the one training."""
    tables = tree.get("stages")
    stages = [t for t in tables if isinstance(t, dict)] if isinstance(tables, list) else []
    named = {str(stage.get("name")): stage for stage in stages}
    there = runs(folder)
    names = [name for name in named if name in there]
    if not tree:  # the order is not told; a stage, other than a run that only lies here, has no env.json
        ended = {name: (folder / name / STATUS).stat().st_mtime_ns for name in there}
        names = sorted((name for name in there if not (folder / name / "env.json").exists()), key=ended.__getitem__)
    for name in names:
        yield part(folder / name, name, {**tree, **named.get(name, {})}, table(folder / name / STATUS))
    if not names:
        yield part(folder, "", tree, status)


def part(folder: Path, name: str, tree: Mapping[str, Any], status: Mapping[str, Any]) -> Part:
    """What one training left behind, in the files that its callbacks were told to write."""
    metrics = folder / told(tree, "metrics", "file", "metrics.jsonl")
    return Part(
        name=name,
        folder=folder,
        status=status,
        metrics=metrics,
        rows=load(metrics),
        final=weighed(folder / told(tree, "weights", "folder", "final")),
        images=pictures(folder / "images"),
    )


def told(tree: Mapping[str, Any], callback: str, option: str, default: str) -> str:
    """An option of a callback, which names a file of the run folder; one that leads out of it is not followed."""
    tables = tree.get("callbacks")
    for given in tables if isinstance(tables, list) else []:
        if isinstance(given, dict) and given.get("type") == callback and isinstance(given.get(option), str):
            path = Path(given[option])
            return default if path.is_absolute() or ".." in path.parts else str(path)
    return default


def pictures(folder: Path) -> tuple[Path, ...]:
    """The PNG files below a folder, newest first."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() == ".png" and path.is_file()]
    return tuple(sorted(found, key=lambda path: (-path.stat().st_mtime_ns, str(path))))


def content(path: Path) -> str:
    """The text of a file; '' if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def table(path: Path) -> dict[str, Any]:
    """The object of a JSON file; an empty one if there is none."""
    try:
        found = json.loads(content(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def toml(text: str) -> Mapping[str, Any] | None:
    """The tables of a text, or None if it is no TOML."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


def moment(text: object) -> datetime | None:
    """A time as the files have it, in UTC."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def written(parts: Sequence[Part]) -> datetime | None:
    """When a number was last written."""
    stamps = [part.metrics.stat().st_mtime for part in parts if part.metrics.is_file()]
    return datetime.fromtimestamp(max(stamps), UTC) if stamps else None
