"""An experiment becomes models, taps, objective and loop; the levels of `check`, and the whole run.

1 names     every table and name is known, plugins are there                  no torch
2 options   named components are loaded, their options checked
3 build     models and data are made, every selector resolved, shapes compared on one batch
4 step      one forward and backward: every loss is finite and reaches the student
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import attrs
import torch

from hookbrew import factory, folder
from hookbrew.config import (
    Component,
    Document,
    Experiment,
    check_names,
    read,
    staged,
    structure,
    write,
    write_stages,
)
from hookbrew.errors import ConfigError, FolderError, Problem
from hookbrew.loop import State, chosen, finite, mix
from hookbrew.modes import kept_random
from hookbrew.plugin import Catalogue
from hookbrew.prepare import Prepared, Shelf, looped, place, prepare

log = logging.getLogger("hookbrew")
STANDARD = ("metrics", "progress", "weights")
"""Callbacks that every run has, named or not; naming one gives it options."""


def resolved(document: Document, catalogue: Catalogue) -> Experiment:
    """Levels 1 and 2 of a file as it is; what `extends` or -s replaced whole is told as a warning of the log."""
    check_names(document, catalogue)
    for note in document.dropped:
        log.warning("note: %s", note)
    return structure(document, catalogue)


def experiment(document: Document, catalogue: Catalogue, *, quiet: bool = False) -> Experiment:
    """Levels 1 and 2: the checked experiment, with the callbacks that every run has.

    quiet leaves the progress display out. Raises ConfigError with all that is wrong.
    """
    made = resolved(document, catalogue)
    if quiet:
        made = attrs.evolve(made, callbacks=[c for c in made.callbacks if c.type != "progress"])
    require_read(made)
    given = [component.type for component in made.callbacks]
    wanted = [name for name in STANDARD if name not in given and not (quiet and name == "progress")]
    if any(part.data.evaluate is not None for part in made.parts.values()) and "evaluate" not in given:
        wanted.insert(0, "evaluate")
    added = [Component(type=name, options=catalogue.load("callbacks", name)()) for name in wanted]
    # evaluate fills in the numbers that the others show, so it comes first wherever it was named
    ordered = sorted([*made.callbacks, *added], key=lambda component: component.type != "evaluate")
    return attrs.evolve(made, callbacks=ordered)


def require_read(experiment: Experiment) -> None:
    """Raise ConfigError for keys that nothing would read."""
    problems = list[Problem]()
    for task, part in experiment.parts.items():
        at, data = place(task), part.data
        if data.collate is not None and data.pad:
            message = "data.collate makes the batches, and pads them itself; leave one of them out"
            problems.append(Problem(f"{at}data.pad", message))
        if data.evaluate is None and data.evaluate_batch_size:
            problems.append(Problem(f"{at}data.evaluate_batch_size", f"there is no {at}data.evaluate"))
    if all(part.data.evaluate is None for part in experiment.parts.values()):
        unread = {"train.evaluate_every": experiment.train.evaluate_every}
        named = {f"callbacks[{i}]": c.type == "evaluate" for i, c in enumerate(experiment.callbacks)}
        problems += [Problem(path, "there is no data.evaluate") for path, given in (unread | named).items() if given]
    if problems:
        raise ConfigError(problems)


@contextmanager
def placed(document: Document) -> Iterator[None]:
    """Mistakes that show up late are reported with their place in the file, like all others; and with their stage."""
    try:
        yield
    except Exception as error:
        if document.stage:
            error.add_note(f"raised in stage {document.stage!r}")
        if not isinstance(error, ConfigError):
            raise
        made = ConfigError([attrs.evolve(p, place=p.place or document.locate(p.path)) for p in error.problems])
        for note in error.__notes__ if hasattr(error, "__notes__") else ():
            made.add_note(note)
        raise made from error


@attrs.frozen
class Stage:
    """A document with its experiment, checked; the only one of a run that has no `[[stages]]`."""

    name: str
    document: Document
    experiment: Experiment


def planned(document: Document, catalogue: Catalogue, *, quiet: bool = False) -> list[Stage]:
    """Levels 1 and 2 of all stages; raises ConfigError with all that is wrong with the first that is."""
    plan = []
    for name, part in staged(document).items():
        with placed(part):
            plan.append(Stage(name, part, experiment(part, catalogue, quiet=quiet)))
            require_place(plan)
    return plan


def require_place(plan: Sequence[Stage]) -> None:
    """Raise ConfigError for a stage that is on another device than the first: all are made before that is trained."""
    first, last = (stage.experiment.train.device for stage in (plan[0], plan[-1]))
    if first != last:
        raise ConfigError([Problem("train.device", f"all stages are on one device, and the first is on {first!r}")])


@contextmanager
def built(plan: Sequence[Stage], catalogue: Catalogue) -> Iterator[list[Prepared]]:
    """Level 3 of all stages: each has models, data and an objective of its own, and all have the one student.

    Random states are as before outside, and no process is left.
    """
    made: list[Prepared] = []
    teachers: Shelf = {}
    paths = [path for stage in plan for path in stage.experiment.pythonpath]
    with ExitStack() as stack:
        for stage in plan:
            with placed(stage.document):
                stack.enter_context(kept_random(chosen(stage.experiment.train.device)))
        stack.enter_context(factory.importing(dict.fromkeys(paths)))
        for stage in plan:
            student = made[0].distillation.student if made else None
            with placed(stage.document):
                made.append(stack.enter_context(closing(prepare(stage.experiment, catalogue, student, teachers))))
        yield made


def run(
    path: str | Path,
    sets: Sequence[str] = (),
    *,
    catalogue: Catalogue,
    overwrite: bool = False,
    quiet: bool = False,
    say: Callable[[str], object] = log.info,
) -> State:
    """The whole run of a configuration file: all checks, then training; returns the last state.

    sets: `key=value` settings that go over the file's. overwrite replaces an earlier run's folder, after
    all checks of this one have passed. say is told which of several stages begins. Raises ConfigError and the other
    errors of `hookbrew.errors`; an exception of a plugin or of the user's code passes through, noted.
    """
    document = read(path, sets)
    plan = planned(document, catalogue, quiet=quiet)
    output = root(plan)
    folder.refuse(output, overwrite=overwrite)
    with built(plan, catalogue) as made:
        loops = []
        for stage, prepared in zip(plan, made, strict=True):
            with placed(stage.document):
                loops.append(looped(prepared, stage.experiment.output))
        files = described(document, plan, catalogue)
        folder.create(output, overwrite=overwrite)
        for number, (stage, loop) in enumerate(zip(plan, loops, strict=True), 1):
            named = {"stage": stage.name} if stage.name else {}
            with placed(stage.document), recorded(loop.state, output, last=number == len(plan), **named):
                while files:
                    name, text = files.popitem()
                    folder.write(output / name, text)
                if named:
                    say(f"stage {stage.name} ({number} of {len(plan)}): {loop.state.total_steps} steps")
                with inside(stage, loop.state):
                    torch.manual_seed(mix(stage.experiment.seed, "train", *named.values()))
                    loop.run()
            loop.optimizer.state.clear()  # nobody asks for it again, and it is twice as large as the student
    return loops[-1].state


def root(plan: Sequence[Stage]) -> Path:
    """The folder of the whole run."""
    first = plan[0].experiment.output
    return first.parent if plan[0].name else first


def described(document: Document, plan: Sequence[Stage], catalogue: Catalogue) -> dict[str, str]:
    """What the run is made of, by the names of files; the configuration may lie in the folder that is replaced."""
    plugins = {plugin.name: plugin.version for plugin in catalogue.plugins}
    return {
        "config.toml": Path(document.path).read_text(encoding="utf-8"),
        "resolved.toml": written(plan),
        "env.json": folder.environment(plugins),
    }


def written(plan: Sequence[Stage]) -> str:
    """The configuration with every default explicit."""
    return write_stages({s.name: s.experiment for s in plan}) if plan[0].name else write(plan[0].experiment)


@contextmanager
def inside(stage: Stage, state: State) -> Iterator[None]:
    """The folder of a stage, made and with a status of its own; that of a run without stages is made already."""
    if not stage.name:
        yield
        return
    folder.create(stage.experiment.output, overwrite=False)
    with recorded(state, stage.experiment.output):
        yield


@contextmanager
def recorded(state: State, where: Path, *, last: bool = True, **named: str) -> Iterator[None]:
    """Keep `status.json` true whatever happens inside; a full disk never hides why a run ended.

    last: whether the run is done after this; else another stage comes. named: what more the status says.
    """
    folder.status(where, "running", total_steps=state.total_steps, **named)
    try:
        yield
    except BaseException as error:
        word = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = f"{type(error).__name__}: {error}".strip(": ")
        try:
            folder.status(where, word, step=state.step, reason=reason, **named)
        except FolderError as second:
            error.add_note(str(second))
        raise
    if last:
        facts = {"reason": state.stop_reason, "metrics": finite(state.metrics)}
        folder.status(where, "done", step=state.step, **facts, **named)
