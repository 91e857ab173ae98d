"""Checkpoints on disk: each stands whole and verified, or not at all.

    checkpoints/step-00001000/manifest.json     what the files are, with sizes and checksums; written last
                              ...               the files
    checkpoints/.new-..., .old-...              what a killed process left; never read, removed by the next one

A file that torch or safetensors would read is not thereby right: one flipped byte gives wrong numbers without an
error in both, so every file has a checksum of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from hookbrew import words
from hookbrew.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
STEP = re.compile(r"step-(\d{8,})")


@attrs.frozen
class Checkpoint:
    """One that stands, verified."""

    folder: Path
    step: int
    facts: Mapping[str, Any]
    """What the manifest says besides its files."""
    files: Mapping[str, Mapping[str, int]]
    """Sizes and checksums."""

    def read(self, name: str) -> bytes:
        """The bytes of a file, checked again; raises CheckpointError when they are not those that were written."""
        return checked(self.folder / name, self.files[name])


@attrs.frozen
class Store:
    """The checkpoints of one run."""

    folder: Path
    keep_last: int = 3
    """How many of the newest stay."""
    keep_every: int | None = None
    """Those whose step is a multiple of this stay for ever."""

    def write(self, step: int, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Path:
        """Make a checkpoint; what stood there before still stands if this fails.

        Raises CheckpointError when it cannot be written. Nothing of it is left then, nor after an exception from
        elsewhere, as torch raises one here when a process that loads data dies.
        """
        self.begin(step)
        return self.finish(step, files, facts)

    def begin(self, step: int) -> Path:
        """A new folder, into which others may write before `finish`; raises CheckpointError."""
        fresh = self.folder / f".new-{step:08}"
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        except OSError as error:
            raise self.unwritten(step, error) from error
        return fresh

    def finish(self, step: int, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Path:
        """Make a checkpoint of these files and of what is in the folder already; as `write`."""
        place, fresh, old = self.place(step), self.folder / f".new-{step:08}", self.folder / f".old-{step:08}"
        try:
            there = {path.relative_to(fresh).as_posix(): path for path in fresh.rglob("*") if path.is_file()}
            listed = {name: summed(path.read_bytes()) for name, path in sorted(there.items())}
            for name, content in files.items():
                put(fresh / name, content)
                listed[name] = summed(content)
            manifest = {"format": FORMAT, "step": step, "files": listed, "facts": dict(facts)}
            put(fresh / MANIFEST, json.dumps(manifest, indent=1).encode())
            synced(fresh)
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)
                place.rename(old)
            fresh.rename(place)
            synced(self.folder)
        except OSError as error:
            raise self.unwritten(step, error) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            if old.exists() and not place.exists():
                old.rename(place)
        shutil.rmtree(old, ignore_errors=True)
        return place

    def unwritten(self, step: int, error: OSError) -> CheckpointError:
        """What to raise for a checkpoint that the disk did not take."""
        return CheckpointError(f"the checkpoint {self.place(step)} cannot be written: {error.strerror or error}")

    def place(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.folder / f"step-{step:08}"

    def steps(self) -> list[int]:
        """The steps that have a folder, good or bad, the newest first."""
        found = (STEP.fullmatch(path.name) for path in self.folder.glob("step-*") if path.is_dir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with those that are newer; None if there is none.

        Raises CheckpointError, naming all of them, when there are some and none is whole: to begin anew in silence
        would lose a run.
        """
        wrong = list[str]()
        for step in self.steps():
            try:
                return opened(self.place(step)), wrong
            except CheckpointError as error:
                wrong.append(str(error))
        if wrong:
            raise CheckpointError(f"none of the checkpoints in {self.folder} is whole: {'; '.join(wrong)}")
        return None, wrong

    def prune(self, keep: Collection[int] = (), newest: int | None = None) -> None:
        """Remove what need not stay, the newest excepted; keep: steps that stay besides.

        newest: the step of the last one that the training made; those of later steps are of before it went on from
        an older one, for they were damaged, and go first. A checkpoint that goes is renamed first: none ever stands
        half.
        """
        steps = self.steps()
        later = [step for step in steps if newest is not None and step > newest]
        for step in [*later, *steps[len(later) :][self.keep_last :]]:
            if step in later or (step not in keep and not (self.keep_every and step % self.keep_every == 0)):
                old = self.folder / f".old-{step:08}"
                shutil.rmtree(old, ignore_errors=True)
                self.place(step).rename(old)
                shutil.rmtree(old, ignore_errors=True)

    def clean(self) -> None:
        """Remove what a killed process left."""
        for path in [*self.folder.glob(".new-*"), *self.folder.glob(".old-*")]:
            shutil.rmtree(path, ignore_errors=True)


def opened(folder: Path) -> Checkpoint:
    """A checkpoint whose every file is as it was written; raises CheckpointError with the first that is not."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        number, step, files, facts = (manifest[key] for key in ("format", "step", "files", "facts"))
    except OSError as error:
        raise CheckpointError(f"{folder} has no {MANIFEST}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged") from error
    if number != FORMAT:
        raise CheckpointError(f"{folder} has format {number}; this hookbrew reads {FORMAT}")
    for name, written in files.items():
        checked(folder / name, written)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    more = there - {MANIFEST, *files}
    if more:
        raise CheckpointError(f"{folder} holds what its {MANIFEST} does not name: {words.several(sorted(more))}")
    return Checkpoint(folder, step, facts, files)


def checked(path: Path, facts: Mapping[str, int]) -> bytes:
    """The bytes of a file; raises CheckpointError unless they have this size and checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) != facts["bytes"]:
        raise CheckpointError(f"{path} has {len(content)} bytes, and {facts['bytes']} were written")
    if zlib.crc32(content) != facts["crc32"]:
        raise CheckpointError(f"{path} is damaged: its checksum is another")
    return content


def summed(content: bytes) -> dict[str, int]:
    """Size and checksum."""
    return {"bytes": len(content), "crc32": zlib.crc32(content)}


def put(path: Path, content: bytes) -> None:
    """Write a file, down to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def synced(folder: Path) -> None:
    """Write the names in a folder down to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
