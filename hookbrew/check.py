"""The four levels of `hookbrew check`: every mistake that can be found before an hour is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from hookbrew import folder, words
from hookbrew.config import check_names, read, staged
from hookbrew.loop import autocast, chosen, moved
from hookbrew.modes import kept
from hookbrew.objective import Objective, Tasks, reach
from hookbrew.plan import Stage, placed, planned, root
from hookbrew.plugin import Catalogue
from hookbrew.prepare import Prepared, looped
from hookbrew.run import built
from hookbrew.taps import unwrap


def check(path: str | Path, sets: Sequence[str] = (), *, catalogue: Catalogue, say: Callable[[str, str], None]) -> None:
    """Go through the levels; tell `say` (level, what was found) for each that passed.

    Raises what `run` would raise, at the first level that fails, with all mistakes of that level.
    Nothing is written, and no weight is changed.
    """
    document = read(path, sets)
    parts = staged(document)
    for part in parts.values():
        with placed(part):
            check_names(part, catalogue)
    say("names", f"plugins {words.several(f'{p.name} {p.version}' for p in catalogue.plugins)}")
    plan = planned(document, catalogue)
    output = root(plan)
    folder.refuse(output, overwrite=True)
    taken = "\nan earlier run is there: `run` will ask for --overwrite" if output.exists() else ""
    say("options", "\n".join(map(losses, plan)) + f"; output {output}{taken}")
    with built(plan, catalogue) as made:
        for stage, prepared in zip(plan, made, strict=True):
            with placed(stage.document):
                total = looped(prepared, stage.experiment.output).state.total_steps
            kept = "" if prepared.lessons is None else f"\n{prepared.lessons}"
            text = f"{models(prepared)}\n{edits(prepared)}{terms(prepared.distillation.objective)}{kept}\n{total} steps"
            say("build", headed(stage, text))
        for stage, prepared in zip(plan, made, strict=True):
            with placed(stage.document):
                say("step", headed(stage, step(prepared)))


def losses(stage: Stage) -> str:
    """The losses of a stage, by type."""
    types = words.several(loss.type for part in stage.experiment.parts.values() for loss in part.losses)
    return f"{stage.name}{': ' * bool(stage.name)}losses {types}"


def headed(stage: Stage, text: str) -> str:
    """A text under the name of its stage, if it has one."""
    return f"stage {stage.name}\n{text}" if stage.name else text


def models(prepared: Prepared) -> str:
    """All models with their sizes, and the keys of the batch that each gets."""
    lines = []
    for task, part in prepared.distillation.objective.parts.items():
        at = f"{task}: " if task else ""
        for name, model in part.models.items():
            who = name if name in ("student", "teacher") else f"teacher {name}"
            lines.append(f"{at}{who} {type(model).__name__}, {size(model)}; gets {words.several(part.received(name))}")
            if name in part.stops:
                lines.append(f"{at}{who} stops {stop(unwrap(model), part.stops[name])}")
        if part.plan.note is not None:
            lines.append(f"{at}large logits are made whole: {part.plan.note}")
    return "\n".join(lines)


def edits(prepared: Prepared) -> str:
    """One line for each edit of a model that was made; with a break after each."""
    made = prepared.experiment.surgery
    paths = (getattr(edit.options, "path", None) for edit in made)
    return "".join(
        f"surgery on {edit.model}: {edit.type}{'' if path is None else f' {path}'}\n"
        for edit, path in zip(made, paths, strict=True)
    )


def stop(model: nn.Module, path: str) -> str:
    """Where a model stops, in layers of the stack that the module lies in: `after layer 6 of 12 (...)`."""
    if path.endswith(":in"):
        return f"before {path.removesuffix(':in')}"
    names = path.split(".")
    for place, name in enumerate(names):
        if name.isdigit() and place:
            total = len(model.get_submodule(".".join(names[:place]))._modules)
            layer = f"layer {int(name) + 1} of {total}"
            if total > 1:
                return f"after {layer} ({path})" if place == len(names) - 1 else f"in {layer}, after {path}"
    return f"after {path}"


def size(model: nn.Module) -> str:
    """`4.39 M parameters`, or the exact number of a tiny model."""
    number = sum(p.numel() for p in model.parameters())
    return f"{number / 1e6:.3g} M parameters" if number >= 1e5 else f"{number:,} parameters"


def terms(objective: Objective | Tasks) -> str:
    """One line for each term: what it compares with what, counted how, masked by what."""
    return "\n".join(
        f"{task}{'/' * bool(task)}{term.name}: {part.described(term)}, a mean over {term.scope.counts}"
        + (", in chunks" if ("student", term.source.path) in part.plan.heads else "")
        + (", each of the next token" if term.scope.shifted else "")
        + (f", {type(term.projection).__name__} projection" if term.projection is not None else "")
        for task, part in objective.parts.items()
        for term in part.terms
    )


def step(prepared: Prepared) -> str:
    """One training-mode forward, and the gradient of each loss; raises ConfigError for one that is not finite."""
    distillation = prepared.distillation
    student, train = distillation.student, prepared.experiment.train
    device = chosen(train.device)
    lines, missed = list[str](), list[set[str]]()
    with distillation.objective.attached(), kept(student):
        student.train()
        for first in prepared.feed.first():
            batch = moved(distillation.augmented(first, 1, 0), device)
            with autocast(train.precision, device):
                distillation.objective.forward(batch)
                losses = distillation.objective.means(batch)
            norms, unreached = reach(losses, student)
            missed.append(set(unreached))
            lines += [f"{name} {losses[name].item():.4g}, gradient norm {norm:.3g}" for name, norm in norms.items()]
    if nowhere := [name for name, _ in student.named_parameters() if all(name in names for names in missed)]:
        lines.append(
            f"{len(nowhere)} tensors of the student get no gradient from any loss: {words.several(nowhere, most=3)}"
        )
    return "\n".join(lines)
