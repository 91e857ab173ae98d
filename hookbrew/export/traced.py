"""The student as a graph: a program of torch.export, and ONNX made of it."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hookbrew import words
from hookbrew.errors import ExportError
from hookbrew.export import fresh
from hookbrew.export.axes import BATCH, LENGTH, Axes, Tensors, example, free, variants
from hookbrew.export.source import Source
from hookbrew.export.written import Written
from hookbrew.objective.inputs import keyword_parameters

PROGRAM, GRAPH = "student.pt2", "student.onnx"
NEEDS = ("onnx", "onnxscript", "onnxruntime")
RUNNING = '''\
import onnxruntime

session = onnxruntime.InferenceSession("student.onnx", providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]


def student(**inputs):
    """Arrays by name in, arrays by name out."""
    return dict(zip(names, session.run(names, inputs)))
'''


def program(source: Source, folder: Path, batches: Sequence[Tensors]) -> Written:
    """`student.pt2`, for torch.export.load."""
    made, written = traced(source, batches)
    made.example_inputs = None  # they are samples of the run's data, and would go into the file
    torch.export.save(made, folder / PROGRAM)
    return written(f'import torch\n\nstudent = torch.export.load("{PROGRAM}").module()\n')


def onnx(source: Source, folder: Path, batches: Sequence[Tensors]) -> Written:
    """`student.onnx`, for onnxruntime; raises ExportError where a student has no form in ONNX."""
    require_onnx()
    made, written = traced(source, batches)
    told = written(RUNNING)
    inputs = dict(told.example)
    with torch.no_grad():
        outputs = [*fresh.flat(plain(source.student, inputs)(**inputs))]
    axes = {name: dict(told.axes.get(name, {})) for name in told.example} if told.axes is not None else {}
    try:
        with quiet():
            graph = torch.onnx.export(
                made,
                dynamo=True,
                verbose=False,
                input_names=[*told.example],
                output_names=outputs,
                dynamic_shapes=axes,
            )
            assert graph is not None
            for node in graph.model.graph.all_nodes():
                node.metadata_props.clear()  # the lines of source files on this machine
            graph.save(folder / GRAPH)
    except Exception as error:  # of any kind: operators without a counterpart, shapes that it cannot infer
        raise ExportError(f"this student cannot be put into ONNX: {line(error)}") from error
    return told


def require_onnx() -> None:
    """Raise ExportError unless all that ONNX needs is installed."""
    lacking = [name for name in NEEDS if find_spec(name) is None]
    if lacking:
        raise ExportError(f'--format onnx needs {words.several(lacking)}, not installed: pip install "hookbrew[onnx]"')


def traced(source: Source, batches: Sequence[Tensors]) -> tuple[ExportedProgram, Callable[[str], Written]]:
    """The student as a program, and what makes a Written of the code that loads it.

    Axes that the model does not allow to be of any size are fixed, and noted.
    """
    student, wanted = source.student, free(batches)
    inputs = example(batches[0], wanted)
    made, axes, limits = attempt(student, inputs, wanted)
    refused = unsure(student, batches, axes)
    kept = {name: [a for a in of if axes[name].get(a, "") not in {"", *refused}] for name, of in wanted.items()}
    if refused or any(0 in of and 0 not in kept[name] for name, of in wanted.items()):
        inputs = example(batches[0], kept)  # of the samples that the data has, if their number is fixed
        made, axes, limits = attempt(student, inputs, kept)
    notes = []
    for name, of in wanted.items():
        for axis in of:
            if axis not in axes[name]:
                size = inputs[name].shape[axis]
                notes.append(f"The model does not let axis {axis} of {name} vary: it is {size}, always.")
    if cached(student):
        notes.append("There is no cache of keys and values: each call computes all tokens.")

    def written(code: str) -> Written:
        return Written(code=code, axes=axes, limits=limits, example=inputs, notes=notes, arrays=code == RUNNING)

    return made, written


def unsure(student: nn.Module, batches: Sequence[Tensors], axes: Axes) -> set[str]:
    """The axes, by what they are called, of which neither the data nor a try says that the student lets them vary.

    A graph alone may seem to: what a shape is multiplied into need not show in its limits.
    """
    found = set()
    for label in {label for of in axes.values() for label in of.values()}:
        of = {name: {axis: each for axis, each in free.items() if each == label} for name, free in axes.items()}
        seen = {tuple(batch[name].shape[axis] for name in of for axis in of[name]) for batch in batches}
        if len(seen) == 1 and len(taken(student, variants(batches, of, ""))) == 0:
            found.add(label)
    return found


def taken(student: nn.Module, tried: Sequence[Tensors]) -> list[Tensors]:
    """Those batches that the student itself takes: some need a certain token, or length."""
    found = []
    for batch in tried:
        try:
            with torch.no_grad():
                student(**batch)
        except Exception:  # of any kind: it is the student's own
            continue
        found.append(batch)
    return found


def attempt(
    student: nn.Module, inputs: Tensors, wanted: Mapping[str, Sequence[int]]
) -> tuple[ExportedProgram, Axes, dict[str, tuple[int, int | None]]]:
    """A program with those axes free that the model allows, their names, and their limits."""
    shapes = {name: dict.fromkeys(wanted[name], Dim.AUTO) for name in inputs}
    try:
        with torch.no_grad(), quiet():
            made = torch.export.export(plain(student, inputs), (), dict(inputs), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of any kind: whatever in a forward depends on the values of tensors
        raise ExportError(f"torch.export cannot trace this student: {line(error)}") from error
    placeholders = {node.name: node for node in made.graph.nodes if node.op == "placeholder"}
    given = [placeholders[name] for name in made.graph_signature.user_inputs if isinstance(name, str)]
    axes: Axes = {}
    limits: dict[str, tuple[int, int | None]] = {}
    called: dict[str, str] = {}
    for (name, _), node in zip(inputs.items(), given, strict=True):
        axes[name] = {}
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                label = axes[name][axis] = label_of(str(size), axis, called)
                limits[label] = limit(made, size, limits.get(label))
    return made, axes, limits


def label_of(symbol: str, axis: int, called: dict[str, str]) -> str:
    """What an axis is called: `batch`, `length`, `length_2`; equal symbols are of one name."""
    if symbol not in called:
        others = {name for name in called.values() if name != BATCH}
        called[symbol] = BATCH if axis == 0 else LENGTH if not others else f"{LENGTH}_{len(others) + 1}"
    return called[symbol]


def limit(made: ExportedProgram, size: Any, before: tuple[int, int | None] | None) -> tuple[int, int | None]:
    """The smallest and largest size of an axis; torch leaves 1 out of all ranges, and means nothing by it."""
    found = next((v for symbol, v in made.range_constraints.items() if str(symbol) == str(size)), None)
    least, most = 1, None
    if found is not None:
        least = 1 if int(found.lower) <= 2 else int(found.lower)
        most = int(found.upper) if str(found.upper).isdigit() else None
    if before is not None:
        least = max(least, before[0])
        most = min((m for m in (most, before[1]) if m is not None), default=None)
    return least, most


def plain(student: nn.Module, inputs: Tensors) -> nn.Module:
    """A module that takes these inputs by name, and gives tensors by name, as `fresh.flat` names them."""
    extra = {"use_cache": False} if cached(student) else {}

    def forward(self: Any, **given: Tensor) -> dict[str, Tensor]:
        return fresh.flat(self.student(**given, **extra))

    kinds = inspect.Parameter
    names = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in ("self", *inputs)]
    forward.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]  # torch.export reads it
    made: Any = type("Student", (nn.Module,), {"forward": forward})()
    made.student = student
    module: nn.Module = made.eval()
    return module


def cached(student: nn.Module) -> bool:
    """Whether the student would give a cache of keys and values."""
    return "use_cache" in keyword_parameters(student)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch warns of its own code, and of packages that it could use and that are not there."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def line(error: BaseException) -> str:
    """The first line of what an exception says, of the innermost one that has a cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
