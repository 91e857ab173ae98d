"""Whether an export computes what the run's student does: it is loaded in a fresh process, and both are compared."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hookbrew import words
from hookbrew.errors import DifferenceError, ExportError
from hookbrew.export import fresh
from hookbrew.export.axes import Tensors


class BarredError(ExportError):
    """The code that loads the student imports hookbrew."""


class OtherError(DifferenceError):
    """The weights do not fit what the code makes."""


@attrs.frozen
class Difference:
    """How far two sets of outputs are apart at most."""

    absolute: float
    relative: float
    """To the largest number of the same output."""
    output: str
    """The one that is furthest, relatively."""


@attrs.frozen
class Answer:
    """What a fresh process found."""

    outputs: list[Tensors]
    """By batch."""
    keys: Mapping[str, Sequence[int]]
    """The names and shapes of its tensors, if it is a module."""


def told(student: nn.Module, batches: Sequence[Tensors]) -> list[Tensors]:
    """What the run's student gives for each batch; raises ExportError when that is no tensor."""
    with torch.no_grad():
        found = [fresh.flat(student(**batch)) for batch in batches]
    if not all(found):
        raise ExportError(f"{type(student).__name__} gives no tensors, so there is nothing to compare")
    return [{name: value.detach().clone() for name, value in outputs.items()} for outputs in found]


def asked(folder: Path, code: str, batches: Sequence[Tensors], *, arrays: bool = False) -> Answer:
    """Run code in a folder, in a process that cannot import hookbrew, and give it batches.

    Raises BarredError when it imports hookbrew all the same, else ExportError with the last line of what it said.
    """
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        job = {"code": code, "count": len(batches), "threads": torch.get_num_threads(), "arrays": arrays}
        files = {name: str(place / f"{name}.safetensors") for name in ("inputs", "outputs")}
        inputs = {f"{n}/{k}": v.contiguous().clone() for n, batch in enumerate(batches) for k, v in batch.items()}
        save_file(inputs, files["inputs"])
        answer = place / "answer.json"
        (place / "job.json").write_text(json.dumps(job | files | {"answer": str(answer)}), encoding="utf-8")
        command = [sys.executable, "-P", str(Path(fresh.__file__)), str(place / "job.json")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise failed(done)
        keys = json.loads(answer.read_text(encoding="utf-8"))["keys"]
        outputs: list[Tensors] = [{} for _ in batches] or [{}]
        for name, tensor in load_file(files["outputs"]).items():
            number, _, key = name.partition("/")
            outputs[int(number)][key] = tensor
        return Answer(outputs, keys)


def failed(done: subprocess.CompletedProcess[str]) -> ExportError:
    """What to raise for a process that did not come to an end."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else f"it ended with {done.returncode}"
    if fresh.REASON in last:
        error: ExportError = BarredError(f"the student cannot be loaded without hookbrew: {last}")
    elif "Error(s) in loading state_dict" in done.stderr:
        error = OtherError("the student's weights do not fit what is made without hookbrew")
    else:
        error = ExportError(f"the export cannot be loaded and run in a fresh process: {shortened(last)}")
    error.__cause__ = RuntimeError(done.stderr.strip())  # the whole of it, for --traceback
    return error


def shortened(line: str, most: int = 300) -> str:
    """A line, cut where it is too long to be read."""
    return line if len(line) <= most else f"{line[:most]} ..."


def require_keys(student: nn.Module, answer: Answer, instead: str) -> None:
    """Raise DifferenceError unless the module that was loaded has the student's tensors; instead: what to do then."""
    ours = {name: list(tensor.shape) for name, tensor in student.state_dict().items()}
    for name in [*ours, *answer.keys]:
        one, other = (tuple(keys[name]) if name in keys else None for keys in (ours, answer.keys))
        if one != other:
            facts = [
                f"{shape} in {what}" if shape is not None else f"not in {what}"
                for shape, what in ((one, "the run's student"), (other, "what was loaded"))
            ]
            raise DifferenceError(f"what is loaded is another model: {name!r} is {' and '.join(facts)}; {instead}")


def compared(ours: Sequence[Mapping[str, Tensor]], theirs: Sequence[Mapping[str, Tensor]]) -> Difference:
    """The largest differences over all batches; raises DifferenceError for other outputs, or of other shapes."""
    worst = Difference(0.0, 0.0, "")
    for one, other in zip(ours, theirs, strict=True):
        if [*one] != [*other] and {*one} != {*other}:
            raise DifferenceError(
                f"the export gives {words.several(sorted(other)) or 'nothing'}; the run's student {words.several(one)}"
            )
        for name, tensor in one.items():
            there = other[name]
            if tensor.shape != there.shape:
                shapes = f"{tuple(there.shape)}, and of the run's student {tuple(tensor.shape)}"
                raise DifferenceError(f"output {name!r} of the export is {shapes}")
            absolute, relative = apart(tensor, there)
            worst = Difference(
                max(worst.absolute, absolute),
                max(worst.relative, relative),
                name if relative > worst.relative or not worst.output else worst.output,
            )
    return worst


def apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """The largest difference of two tensors, and that relative to the largest number of the first.

    Equal infinities and NaN in the same places are no difference; in others they are an infinite one.
    """
    if not one.numel():
        return 0.0, 0.0
    one, other = one.double(), other.double()
    same = (one == other) | (one.isnan() & other.isnan())
    gap = torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    absolute = float(gap.max())
    finite = one[one.isfinite()].abs()
    size = float(finite.max()) if finite.numel() else 0.0
    return absolute, absolute / size if size else absolute


def require_small(difference: Difference, tolerance: float, hint: str = "") -> None:
    """Raise DifferenceError when outputs are further apart than that, relatively."""
    if difference.relative > tolerance:
        more = f"; {hint}" if hint else ""
        raise DifferenceError(
            f"output {difference.output!r} of the export differs from the run's student by {difference.relative:.2g} "
            f"of its size ({difference.absolute:.2g}), and {tolerance:.2g} is allowed{more}"
        )
