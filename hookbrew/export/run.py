"""The whole export: open the run, write, reload without hookbrew, compare, describe, put in place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew import words
from hookbrew.errors import DifferenceError, ExportError, HookbrewError
from hookbrew.export import axes, card, place, source, traced, verify, written
from hookbrew.export.axes import Tensors
from hookbrew.export.source import Source
from hookbrew.export.written import Written
from hookbrew.plugin import Catalogue, catalogue

FORMATS = ("safetensors", "transformers", "torch-export", "onnx")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
TOLERANCES = {"onnx": 1e-4}
READING = f"""\
from safetensors.torch import load_file

weights = {{f"0/{{name}}": tensor for name, tensor in load_file("{written.WEIGHTS}").items()}}
"""
TOLERANCE = 1e-6
"""Largest difference from the run's student, relative to the largest number of each output."""


@attrs.frozen(kw_only=True)
class Exported:
    """An export that stands, verified; also what `export.json` in it says."""

    folder: str
    format: str
    run: str
    checkpoint: str
    model: str
    """The class of the student."""
    parameters: int
    bytes: int
    """Of the files, the model card and these facts left out."""
    files: Mapping[str, int]
    inputs: Mapping[str, Any]
    """By name: dtype, and shape, where a word is an axis of any size."""
    outputs: Sequence[str]
    limits: Mapping[str, tuple[int, int | None]]
    """The smallest and the largest size of such an axis; None where there is none."""
    compared: str
    """`outputs`, or `weights` where the class of the student needs hookbrew."""
    batches: int
    """How many were compared."""
    difference: float
    relative: float
    tolerance: float
    results: Mapping[str, Any]
    """Metrics of the student's last evaluation."""
    notes: Sequence[str]
    made: str
    """The time."""


def export(
    run: str | PathLike[str],
    to: str | PathLike[str],
    *,
    format: str | None = None,
    checkpoint: str = "final",
    stage: str | None = None,
    dtype: str | None = None,
    tolerance: float | None = None,
    batches: int = 4,
    overwrite: bool = False,
    sets: Sequence[str] = (),
    known: Catalogue | None = None,
) -> Exported:
    """Write the student of a run folder into a folder, in files that need no hookbrew.

    format: one of FORMATS; transformers for its models, else safetensors. checkpoint: `final`, `best` or `step 120`.
    dtype: fp32, bf16 or fp16, if not the student's own. batches: how many of the run's data are compared, a few
    samples each. sets: `key=value` settings that go over the run's configuration. known: plugins, if not those that
    are installed.

    What was written is loaded in a fresh process that cannot import hookbrew, and must compute what the student
    computes. Raises DifferenceError when it does not, up to tolerance (relative; 1e-4 for ONNX, else 1e-6), and
    ExportError, FolderError and ConfigError for what cannot be done; `to` is then as it was before.
    """
    folder, origin = Path(to).absolute(), Path(run)
    require_known(format, dtype, tolerance, batches)
    if format == "onnx":
        traced.require_onnx()
    place.refuse(folder, origin, overwrite=overwrite)
    with source.opened(origin, checkpoint, stage, sets, catalogue=known or catalogue()) as found:
        if dtype is not None:
            found.student.to(getattr(torch, DTYPES[dtype]))
        tried, notes = source.tried(found, batches)
        if dtype is not None:
            tried = [cast(batch, getattr(torch, DTYPES[dtype])) for batch in tried]
        chosen = format or ("transformers" if hasattr(found.student, "save_pretrained") else "safetensors")
        with place.fresh(folder) as fresh:
            made = put(found, chosen, fresh, tried, DTYPES.get(dtype or "", ""))
            facts = checked(found, made, fresh, tried, allowed(chosen, tolerance))
            notes = [*notes, *made.notes, *facts.pop("notes"), *noted(found, dtype)]
            facts |= {"format": chosen, "folder": str(folder), "notes": notes}
            exported = described(found, made, tried[0], fresh, **facts)
            finish(found, made, exported, fresh)
    return exported


def allowed(format: str, tolerance: float | None) -> float:
    """The largest relative difference."""
    return TOLERANCES.get(format, TOLERANCE) if tolerance is None else tolerance


def require_known(format: str | None, dtype: str | None, tolerance: float | None, batches: int) -> None:
    """Raise ExportError for an argument that has no such value."""
    for what, value, names in (("format", format, FORMATS), ("dtype", dtype, DTYPES)):
        if value is not None and value not in names:
            raise ExportError(f"there is no {what} {value!r}; {words.hint(value, names)}")
    if batches < 1:
        raise ExportError(f"batches is {batches}; at least 1 is compared")
    if tolerance is not None and not tolerance >= 0:
        raise ExportError(f"tolerance is {tolerance}; expected 0 or more")


def cast(batch: Tensors, dtype: torch.dtype) -> Tensors:
    """A batch with its real numbers in another precision."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def put(found: Source, format: str, folder: Path, batches: Sequence[Tensors], dtype: str) -> Written:
    """Write the files of a format."""
    if format == "safetensors":
        return written.tensors(found, folder, dtype)
    if format == "transformers":
        return written.hub(found, folder, dtype)
    return (traced.onnx if format == "onnx" else traced.program)(found, folder, batches)


def checked(found: Source, made: Written, folder: Path, batches: Sequence[Tensors], tolerance: float) -> dict[str, Any]:
    """Load what was written without hookbrew, and compare; raises DifferenceError."""
    student, mask = found.student, next(iter(found.experiment.parts.values())).data.mask
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in student.parameters())
    free = {name: {0: axes.BATCH} for name, of in axes.free(batches).items() if 0 in of}
    if made.axes is not None:
        free = dict(made.axes)
        batches = [*axes.fitting(batches, made.example, free)] or [dict(made.example)]
    batches = [*batches, *traced.taken(student, axes.variants(batches, free, mask))]
    ours = told(student, batches)
    try:
        answer = verify.asked(folder, made.code, batches, arrays=made.arrays)
    except verify.BarredError:
        if made.axes is not None or not (folder / written.WEIGHTS).is_file():
            raise
        return {**weighed(student, folder), "batches": 0, "outputs": [*ours[0]], "tolerance": tolerance}
    except verify.OtherError as error:
        raise verify.OtherError(f"{error}; {made.instead}") from error
    except ExportError as error:
        if not (half and made.arrays):
            raise
        raise ExportError(f"{error}; onnxruntime has not every operator in half precision: --dtype fp32") from error
    if made.instead:
        verify.require_keys(student, answer, made.instead)
    difference = verify.compared(ours, answer.outputs)
    hint = "--dtype fp32 exports the student in full precision, --tolerance allows more" if half else ""
    verify.require_small(difference, tolerance, made.instead or hint)
    return {
        "compared": "outputs",
        "batches": len(batches),
        "outputs": [*ours[0]],
        "difference": difference.absolute,
        "relative": difference.relative,
        "tolerance": tolerance,
        "notes": [],
    }


def told(student: nn.Module, batches: Sequence[Tensors]) -> list[Tensors]:
    """What the run's student gives; raises ExportError when it does not run on the CPU in its own precision."""
    try:
        return verify.told(student, batches)
    except HookbrewError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"the student does not run on the CPU by itself: {reason}; --dtype fp32 may help") from error


def weighed(student: nn.Module, folder: Path) -> dict[str, Any]:
    """Compare the tensors of the file, bit for bit, where the class of the student cannot be had without hookbrew."""
    (theirs,) = verify.asked(folder, READING, []).outputs
    state: dict[str, Tensor] = student.state_dict()
    ours = {name: state[name] for name in theirs if name in state}
    lacking = {tensor.data_ptr() for tensor in state.values()} - {tensor.data_ptr() for tensor in ours.values()}
    if lacking:
        raise DifferenceError(f"{written.WEIGHTS} lacks tensors of the student")
    verify.require_small(verify.compared([ours], [theirs]), 0.0)
    note = "The class of the student cannot be imported without hookbrew: its tensors were compared, and no outputs."
    return {"compared": "weights", "difference": 0.0, "relative": 0.0, "notes": [note]}


def noted(found: Source, dtype: str | None) -> list[str]:
    """What else is to be said of an export."""
    notes = []
    if found.origin.averaged:
        notes.append("These are the student's own weights of that step, not the average that the callback ema keeps.")
    if dtype is not None:
        notes.append(f"Converted to {dtype}, and compared with the run's student converted alike.")
    return notes


def described(found: Source, made: Written, first: Tensors, fresh: Path, **facts: Any) -> Exported:
    """All that is known of an export; first: a batch, for what was not traced."""
    free = made.axes or {}
    inputs = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [free.get(name, {}).get(axis, size) for axis, size in enumerate(tensor.shape)],
        }
        for name, tensor in (made.example or first).items()
    }
    sized = place.sizes(fresh)
    return Exported(
        run=str(found.folder),
        checkpoint=found.origin.name,
        model=type(found.student).__name__,
        parameters=sum(p.numel() for p in found.student.parameters()),
        bytes=sum(sized.values()),
        files=sized,
        inputs=inputs,
        limits=dict(made.limits),
        results=found.results,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    )


def finish(found: Source, made: Written, exported: Exported, folder: Path) -> None:
    """Write the model card, and the facts for programs."""
    page = card.page(found, made, exported)
    (folder / place.CARD).write_text(page, encoding="utf-8")
    facts = json.dumps(attrs.asdict(exported), indent=2, default=str)
    (folder / place.FACTS).write_text(facts + "\n", encoding="utf-8")
