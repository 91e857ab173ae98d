"""An experiment becomes models, taps, objective and loop; the levels of `check`, and the whole run.

1 names     every table and name is known, plugins are there                  no torch
2 options   named components are loaded, their options checked
3 build     models and data are made, every selector resolved, shapes compared on one batch
4 step      one forward and backward: every loss is finite and reaches the student
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import torch
from torch import nn

from hookbrew import factory, folder, words
from hookbrew.config import Component, Document, Experiment, check_names, read, structure, write
from hookbrew.distillation import Distillation, Fitting
from hookbrew.errors import ConfigError, FolderError, Problem
from hookbrew.loop import Loader, Loop, Pad, State, chosen, finite, mix
from hookbrew.modes import kept_random
from hookbrew.plugin import Catalogue

log = logging.getLogger("hookbrew")
STANDARD = ("metrics", "progress", "weights")
"""Callbacks that every run has, named or not; naming one gives it options."""


@attrs.frozen(kw_only=True)
class Prepared:
    """A run that passed level 3: nothing but time stands between it and a student."""

    experiment: Experiment
    distillation: Distillation
    feed: Loader
    evaluate: Loader | None

    def close(self) -> None:
        """End the processes that load data."""
        for loader in (self.feed, self.evaluate):
            if loader is not None:
                loader.close()


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
    if made.data.evaluate is not None and "evaluate" not in given:
        wanted.insert(0, "evaluate")
    added = [Component(type=name, options=catalogue.load("callbacks", name)()) for name in wanted]
    # evaluate fills in the numbers that the others show, so it comes first wherever it was named
    ordered = sorted([*made.callbacks, *added], key=lambda component: component.type != "evaluate")
    return attrs.evolve(made, callbacks=ordered)


def require_read(experiment: Experiment) -> None:
    """Raise ConfigError for keys that nothing would read."""
    data, problems = experiment.data, list[Problem]()
    if data.collate is not None and data.pad:
        problems.append(
            Problem("data.pad", "data.collate makes the batches, and pads them itself; leave one of them out")
        )
    if data.evaluate is None:
        unread = {
            "data.evaluate_batch_size": data.evaluate_batch_size,
            "train.evaluate_every": experiment.train.evaluate_every,
        }
        named = {f"callbacks[{i}]": c.type == "evaluate" for i, c in enumerate(experiment.callbacks)}
        problems += [Problem(path, "there is no data.evaluate") for path, given in (unread | named).items() if given]
    if problems:
        raise ConfigError(problems)


@contextmanager
def placed(document: Document) -> Iterator[None]:
    """Mistakes that show up late are reported with their place in the file, like all others."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            [attrs.evolve(p, place=p.place or document.locate(p.path)) for p in error.problems]
        ) from error


def prepare(experiment: Experiment, catalogue: Catalogue) -> Prepared:
    """Level 3: build models and data, resolve selectors, measure shapes on the first batch."""
    train = feed(experiment, "train")
    evaluate = None if experiment.data.evaluate is None else feed(experiment, "evaluate")
    distillation = distilled(experiment, catalogue)
    distillation.measure(train, experiment.train)
    if evaluate is not None:
        key, batch = experiment.data.labels, distillation.rehearse(evaluate, experiment.train)
        if key not in batch:
            message = f"callback 'evaluate' needs labels, and the batch has no key {key!r}; {words.hint(key, batch)}"
            raise ConfigError([Problem("data.evaluate", message)])
    return Prepared(experiment=experiment, distillation=distillation, feed=train, evaluate=evaluate)


def feed(experiment: Experiment, which: str) -> Loader:
    """The batches of `train`, in the order of the seed, or of `evaluate`, in their own."""
    data, training = experiment.data, which == "train"
    return Loader(
        factory.build(getattr(data, which), f"data.{which}"),
        batch_size=data.batch_size if training else data.evaluate_batch_size or data.batch_size,
        seed=experiment.seed if training and data.shuffle else None,
        collate=Pad(data.pad, data.fields) if data.collate is None else factory.build(data.collate, "data.collate"),
        fields=data.fields,
        workers=data.workers,
    )


def distilled(experiment: Experiment, catalogue: Catalogue) -> Distillation:
    """Both models, and the losses between them."""
    teacher = None if experiment.teacher is None else model(experiment, "teacher")
    student = model(experiment, "student")
    torch.manual_seed(mix(experiment.seed, "projections"))
    return Distillation(
        teacher,
        student,
        experiment.losses,
        augments=experiment.augments,
        fields=experiment.data.fields,
        labels=experiment.data.labels,
        mask=experiment.data.mask,
        seed=experiment.seed,
        catalogue=catalogue,
    )


def model(experiment: Experiment, side: str) -> nn.Module:
    """The student or the teacher, its weights drawn from a seed of its own."""
    torch.manual_seed(mix(experiment.seed, side))
    made = factory.build(getattr(experiment, side), side)
    if not isinstance(made, nn.Module):
        name = getattr(experiment, side).factory
        raise ConfigError([Problem(f"{side}.factory", f"{name} gave a {type(made).__name__}; expected a torch module")])
    return made


def looped(prepared: Prepared, where: Path | None) -> Loop:
    """The loop of a prepared run, its optimizer and callbacks made and checked; where: the run folder."""
    config, distillation = prepared.experiment, prepared.distillation
    schedule = config.lr_schedule
    fitting = Fitting(
        train=config.train,
        optimizer=factory.optimizer(config.optimizer, distillation.student.parameters()),
        rate=None if schedule is None else schedule.options.build(),
        evaluate=prepared.evaluate,
        callbacks=[(component.type, component.options.build()) for component in config.callbacks],
        folder=where,
    )
    return distillation.loop(prepared.feed, fitting)


def run(
    path: str | Path, sets: Sequence[str] = (), *, catalogue: Catalogue, overwrite: bool = False, quiet: bool = False
) -> State:
    """The whole run of a configuration file: all checks, then training; returns the last state.

    sets: `key=value` settings that go over the file's. overwrite replaces an earlier run's folder, after
    all checks of this one have passed. Raises ConfigError and the other errors of `hookbrew.errors`; an
    exception of a plugin or of the user's code passes through, noted.
    """
    document = read(path, sets)
    with placed(document):
        config = experiment(document, catalogue, quiet=quiet)
        folder.refuse(config.output, overwrite=overwrite)
        with (
            kept_random(chosen(config.train.device)),
            factory.importing(config.pythonpath),
            closing(prepare(config, catalogue)) as prepared,
        ):
            loop = looped(prepared, config.output)
            files = described(document, config, catalogue)
            folder.create(config.output, overwrite=overwrite)
            with recorded(loop.state, config.output):
                for name, text in files.items():
                    folder.write(config.output / name, text)
                torch.manual_seed(mix(config.seed, "train"))
                return loop.run()


def described(document: Document, config: Experiment, catalogue: Catalogue) -> dict[str, str]:
    """What the run is made of, by the names of files; the configuration may lie in the folder that is replaced."""
    plugins = {plugin.name: plugin.version for plugin in catalogue.plugins}
    return {
        "config.toml": Path(document.path).read_text(encoding="utf-8"),
        "resolved.toml": write(config),
        "env.json": folder.environment(plugins),
    }


@contextmanager
def recorded(state: State, where: Path) -> Iterator[None]:
    """Keep `status.json` true whatever happens inside; a full disk never hides why a run ended."""
    folder.status(where, "running", total_steps=state.total_steps)
    try:
        yield
    except BaseException as error:
        word = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = f"{type(error).__name__}: {error}".strip(": ")
        try:
            folder.status(where, word, step=state.step, reason=reason)
        except FolderError as second:
            error.add_note(str(second))
        raise
    folder.status(where, "done", step=state.step, reason=state.stop_reason, metrics=finite(state.metrics))
