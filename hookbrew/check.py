"""The four levels of `hookbrew check`: every mistake that can be found before an hour is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from torch import nn

from hookbrew import factory, folder, words
from hookbrew.config import check_names, read
from hookbrew.loop import autocast, chosen, moved
from hookbrew.modes import kept, kept_random
from hookbrew.objective import Objective, reach
from hookbrew.plugin import Catalogue
from hookbrew.run import Prepared, experiment, looped, placed, prepare
from hookbrew.taps import unwrap


def check(path: str | Path, sets: Sequence[str] = (), *, catalogue: Catalogue, say: Callable[[str, str], None]) -> None:
    """Go through the levels; tell `say` (level, what was found) for each that passed.

    Raises what `run` would raise, at the first level that fails, with all mistakes of that level.
    Nothing is written, and no weight is changed.
    """
    document = read(path, sets)
    with placed(document):
        check_names(document, catalogue)
        say("names", f"plugins {words.several(f'{p.name} {p.version}' for p in catalogue.plugins)}")
        config = experiment(document, catalogue)
        folder.refuse(config.output, overwrite=True)
        taken = "\nan earlier run is there: `run` will ask for --overwrite" if config.output.exists() else ""
        losses = words.several(loss.type for loss in config.losses)
        say("options", f"losses {losses}; output {config.output}{taken}")
        with (
            kept_random(chosen(config.train.device)),
            factory.importing(config.pythonpath),
            closing(prepare(config, catalogue)) as prepared,
        ):
            loop = looped(prepared, config.output)
            say(
                "build",
                f"{models(prepared)}\n{terms(prepared.distillation.objective)}\n{loop.state.total_steps} steps",
            )
            say("step", step(prepared))


def models(prepared: Prepared) -> str:
    """Both models with their sizes, and the keys of the batch that each gets."""
    objective = prepared.distillation.objective
    sides = [("student", objective.student), ("teacher", objective.teacher)]
    lines = [
        f"{side} {type(model).__name__}, {size(model)}; gets {words.several(objective.received(side))}"
        for side, model in sides
        if model is not None
    ]
    if objective.teacher is not None and objective.stop is not None:
        lines.append(f"teacher stops {stop(unwrap(objective.teacher), objective.stop)}")
    return "\n".join(lines)


def stop(model: nn.Module, path: str) -> str:
    """Where a teacher stops, in layers of the stack that the module lies in: `after layer 6 of 12 (...)`."""
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


def terms(objective: Objective) -> str:
    """One line for each term: what it compares with what, counted how, masked by what."""
    return "\n".join(
        f"{term.name}: {objective.described(term)}, a mean over {term.scope.counts}"
        + (f", {type(term.projection).__name__} projection" if term.projection is not None else "")
        for term in objective.terms
    )


def step(prepared: Prepared) -> str:
    """One training-mode forward, and the gradient of each loss; raises ConfigError for one that is not finite."""
    distillation = prepared.distillation
    objective = distillation.objective
    train = prepared.experiment.train
    device = chosen(train.device)
    with objective.attached(), kept(objective.student):
        objective.student.train()
        batch = moved(distillation.augmented(next(iter(prepared.feed.epoch(1))), 1, 0), device)
        with autocast(train.precision, device):
            objective.forward(batch)
            losses = objective.means(batch)
        norms, missed = reach(losses, objective.student)
    lines = [f"{name} {losses[name].item():.4g}, gradient norm {norm:.3g}" for name, norm in norms.items()]
    if missed:
        lines.append(
            f"{len(missed)} tensors of the student get no gradient from any loss: {words.several(missed, most=3)}"
        )
    return "\n".join(lines)
