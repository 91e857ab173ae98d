"""The model card: what was distilled, from what, with which losses, on which data, and how the files are loaded."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hookbrew.config import Experiment, Factory, inline, plain
from hookbrew.config import Loss as LossTable
from hookbrew.export.source import Source
from hookbrew.export.written import Written
from hookbrew.report.head import listed, mapping, size

if TYPE_CHECKING:
    from hookbrew.export.run import Exported

FILES = {
    "safetensors": "tensors for the class that the run's factory makes",
    "transformers": "a model of transformers, for `from_pretrained`",
    "torch-export": "a program of `torch.export`; it needs torch and nothing else",
    "onnx": "a graph for onnxruntime, and anything else that reads ONNX",
}


def page(found: Source, made: Written, exported: Exported) -> str:
    """The whole card."""
    return "\n".join(lines(found, made, exported)) + "\n"


def lines(found: Source, made: Written, exported: Exported) -> Iterator[str]:
    """Part by part."""
    experiment = found.experiment
    if exported.format == "transformers":
        yield from ("---", "library_name: transformers", "tags:", "- distillation", "- hookbrew", "---", "")
    yield f"# {exported.model}, distilled"
    yield ""
    yield f"{exported.parameters:,} parameters; {FILES[exported.format]}. Made by `hookbrew export` of the run "
    yield f"`{found.folder.name}`, checkpoint {exported.checkpoint}, on {exported.made[:10]}."
    yield from ("", "## Loading it", "", "In the folder of this file:", "")
    yield from ("```python", made.code.rstrip(), "```", "")
    yield from ("```python", *calling(made, exported), "```", "")
    yield from interface(exported)
    yield from ("## What it was distilled from", "")
    yield from models(experiment)
    yield from ("", "## How it was trained", "")
    yield from training(experiment)
    yield from ("", "## Results", "")
    yield from results(exported)
    yield from ("", "## Checked", "")
    yield from check(exported)
    yield from ("", "## Versions", "")
    yield from versions(found)


def calling(made: Written, exported: Exported) -> Iterator[str]:
    """A call with inputs of the right kind."""
    if made.arrays:
        yield from ("import numpy as np", "")
    else:
        yield from ("import torch", "")
    yield "inputs = {"
    for name, table in exported.inputs.items():
        yield f"    {name!r}: {filled(made, name, table)},"
    yield "}"
    if made.arrays:
        yield "outputs = student(**inputs)"
    else:
        yield from ("with torch.no_grad():", "    outputs = student(**inputs)")


def filled(made: Written, name: str, table: Mapping[str, Any]) -> str:
    """Ones of the shape and kind of an input."""
    example: Tensor | None = made.example.get(name)
    numbers = table["shape"] if example is None else list(example.shape)
    shape = f"({', '.join(map(str, numbers))}{',' if len(numbers) == 1 else ''})"
    return (
        f"np.ones({shape}, np.{table['dtype']})"
        if made.arrays
        else f"torch.ones({shape}, dtype=torch.{table['dtype']})"
    )


def interface(exported: Exported) -> Iterator[str]:
    """The inputs with their axes, and the names of the outputs."""
    yield "| input | type | shape |"
    yield "|---|---|---|"
    for name, table in exported.inputs.items():
        yield f"| `{name}` | {table['dtype']} | ({', '.join(map(str, table['shape']))}) |"
    yield ""
    yield f"Outputs: {', '.join(f'`{name}`' for name in exported.outputs)}."
    for name, (least, most) in exported.limits.items():
        if most is not None or least > 1:
            yield f"`{name}` is {least} or more{'' if most is None else f', up to {most}'}."
    yield from exported.notes
    yield ""


def models(experiment: Experiment) -> Iterator[str]:
    """Student and teachers, as the configuration has them."""
    yield f"- student: {made(experiment.student)}"
    for task, part in experiment.parts.items():
        at = f" of task {task}" if task else ""
        for name, teacher in ({"": part.teacher} if part.teacher else part.teachers or {}).items():
            yield f"- teacher{f' {name}' if name else ''}{at}: {made(teacher)}"
        if not part.teacher and not part.teachers:
            yield f"- no teacher{at}: trained on labels"


def made(factory: Any) -> str:
    """A factory with its arguments, on one line."""
    if not isinstance(factory, Factory):
        return f"`{inline(plain(factory))}`"
    given = ", ".join(f"{key} = {inline(plain(value))}" for key, value in factory.arguments.items())
    return f"`{factory.factory}`" + (f" with `{given}`" if given else "")


def training(experiment: Experiment) -> Iterator[str]:
    """Losses, data, and how long."""
    for task, part in experiment.parts.items():
        at = f"{task}: " if task else ""
        evaluated = f"evaluated on {made(part.data.evaluate)}" if part.data.evaluate else "not evaluated"
        yield f"- {at}data {made(part.data.train)}, {evaluated}"
        for loss in part.losses:
            yield f"- {at}loss {described(loss)}"
    train, optimizer = experiment.train, experiment.optimizer
    long = f"{train.epochs} epochs" if train.epochs is not None else f"{train.steps} steps"
    batch = ", ".join(str(part.data.batch_size) for part in experiment.parts.values())
    yield f"- {long}, batches of {batch}, {optimizer.type} at {optimizer.lr:g}, seed {experiment.seed}"


def described(loss: LossTable) -> str:
    """A loss: what it compares, how much it counts, and its options."""
    table = dict(plain(loss))
    kind, weight = table.pop("type"), table.pop("weight", 1.0)
    sides = [f"{side} `{inline(table.pop(side))}`" for side in ("student", "teacher") if side in table]
    shown = {key: value for key, value in table.items() if key not in ("mask", "name", "labels")}
    options = ", ".join(f"{key} = {inline(value)}" for key, value in shown.items())
    between = f" of {' and '.join(sides)}" if sides else ""
    return f"`{kind}`{between}, weight {inline(weight)}" + (f" ({options})" if options else "")


def results(exported: Exported) -> Iterator[str]:
    """The metrics."""
    if not exported.results:
        yield "The run has no evaluation of this student."
        return
    yield from ("| metric | value |", "|---|---|")
    for name, value in exported.results.items():
        yield f"| {name} | {value:.4f} |" if isinstance(value, float) else f"| {name} | {value} |"


def check(exported: Exported) -> Iterator[str]:
    """What was compared, and how large everything is."""
    if exported.compared == "outputs":
        yield "Loaded by the code above in a fresh process without hookbrew, and compared with the run's student on "
        yield f"{exported.batches} batches: outputs differ by {exported.difference:.2g} at most, that is"
        yield f"{exported.relative:.2g} of their size ({exported.tolerance:.2g} was allowed)."
    else:
        yield "The file was read in a fresh process without hookbrew: its tensors are those of the run's student."
    yield ""
    yield f"Files, {size(exported.bytes)} in all:"
    yield from (
        f"`{name}` {size(count)}" + ("" if place == len(exported.files) else ",")
        for place, (name, count) in enumerate(exported.files.items(), 1)
    )


def versions(found: Source) -> Iterator[str]:
    """What trained it, and what exported it."""
    before = {"python": found.environment.get("python", ""), **mapping(found.environment.get("packages"))}
    yield f"Trained with {listed(before) or 'versions that the run does not tell'}; "
    yield f"exported with python {platform.python_version()}, torch {torch.__version__}."
