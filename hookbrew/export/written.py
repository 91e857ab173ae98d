"""The student as tensors in files: of transformers by its own `save_pretrained`, or by the run's factory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from torch import Tensor, nn

from hookbrew.errors import ExportError
from hookbrew.export.axes import Axes
from hookbrew.export.source import Source
from hookbrew.export.spelling import loading, searching
from hookbrew.loop.save import store

WEIGHTS = "student.safetensors"
INSTEAD = "use --format torch-export or onnx, which hold the computation itself"
FORMATS = "--format safetensors, torch-export or onnx"


@attrs.frozen(kw_only=True)
class Written:
    """What a format made, and how it is used."""

    code: str
    """Python that makes `student` of the files of the folder it runs in."""
    axes: Axes | None = None
    """The axes of inputs that may be of any size; None where Python says, as it did in the run."""
    limits: Mapping[str, tuple[int, int | None]] = attrs.field(factory=dict)
    """The smallest and the largest size of such an axis, by what it is called."""
    example: Mapping[str, Tensor] = attrs.field(factory=dict)
    """What it was traced with."""
    arrays: bool = False
    """Whether the student takes and gives arrays of NumPy."""
    instead: str = ""
    """What to do when another model comes out."""
    notes: Sequence[str] = ()


def tensors(source: Source, folder: Path, dtype: str) -> Written:
    """`student.safetensors`, for the module that the run's factory makes; dtype: what to make it, or ''."""
    try:
        store(source.student, folder / WEIGHTS, None)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"the weights cannot be written as safetensors: {error}") from error
    made = loading(source.experiment.student)
    cast = f"\nstudent = student.to(torch.{dtype})" if dtype else ""
    head, blank, rest = made.rpartition("\n\n")
    imports = (
        f"{head}\nimport torch\nfrom safetensors.torch import load_model"
        if cast
        else (f"{head}\nfrom safetensors.torch import load_model")
    )
    code = f"{imports}{blank}{rest}{cast}\nload_model(student, {WEIGHTS!r})\nstudent.eval()\n"
    return Written(code=code, instead=f"the run's factory alone does not make this student; {INSTEAD}")


def hub(source: Source, folder: Path, dtype: str) -> Written:
    """What `save_pretrained` writes; dtype is in it already. Raises ExportError for a student that has none."""
    student = source.student
    kind = type(student)
    if not (hasattr(student, "save_pretrained") and hasattr(kind, "from_pretrained")):
        raise ExportError(f"the student is a {kind.__name__}, which is no model of transformers; use {FORMATS}")
    try:
        student.save_pretrained(folder)  # type: ignore[operator]  # a method, as just asked
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"save_pretrained refuses this student: {reason}; use {FORMATS}") from error
    module = "transformers" if public(kind) else kind.__module__
    lines = [*searching([module]), f"from {module} import {kind.__name__}", ""]
    code = "\n".join([*lines, f'student = {kind.__name__}.from_pretrained(".")']) + "\n"
    changed = "from_pretrained builds the plain model of its configuration, and this student is changed in structure"
    return Written(code=code, instead=f"{changed}; use {FORMATS}")


def public(kind: type[nn.Module]) -> bool:
    """Whether transformers itself has a class under its name."""
    if kind.__module__.partition(".")[0] != "transformers":
        return False
    import transformers

    return getattr(transformers, kind.__name__, None) is kind
