"""What is exported: the student of a run folder with its weights, and batches of the run's data to try it on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor, nn

from hookbrew import factory, words
from hookbrew.chance import kept_random
from hookbrew.config import Experiment, read
from hookbrew.errors import ExportError
from hookbrew.export.axes import Tensors
from hookbrew.export.weights import Origin, fill
from hookbrew.feeds import feed
from hookbrew.folder import STATUS
from hookbrew.models import merged, model
from hookbrew.objective import Names, accepted, parted
from hookbrew.plan import Stage, placed, planned
from hookbrew.plugin import Catalogue
from hookbrew.report.read import table
from hookbrew.resume import require_run
from hookbrew.store import MANIFEST, Store

ROWS = 8
"""The most samples of one batch that is compared: logits of every token of a large vocabulary take much memory."""
STEP = re.compile(r"(?:step[ -])?(\d+)")


@attrs.frozen(kw_only=True)
class Source:
    """A trained student, and what is known of it."""

    folder: Path
    """The run."""
    experiment: Experiment
    """Of the stage that trained it."""
    origin: Origin
    student: nn.Module
    """As the run's configuration makes it, on the CPU, in evaluation mode, with the weights of the checkpoint."""
    results: Mapping[str, Any]
    """Metrics of the last evaluation before it was saved."""
    environment: Mapping[str, Any]
    """Versions and the command of the run."""


@contextmanager
def opened(
    run: Path, checkpoint: str, stage: str | None, sets: Sequence[str], *, catalogue: Catalogue
) -> Iterator[Source]:
    """The student of a run; the modules of its configuration can be imported inside.

    Raises FolderError for a folder of no run, ExportError for a checkpoint or a stage that is not there, ConfigError
    when the configuration does not make the student any more.
    """
    folder = run.absolute()
    plan = planned(read(require_run(folder), [*sets, f"output={json.dumps(str(folder))}"]), catalogue, quiet=True)
    chosen = staged(plan, stage)
    origin = located(chosen.experiment, checkpoint)
    with kept_random(), factory.importing(chosen.experiment.pythonpath):
        with placed(chosen.document):
            student = built(chosen.experiment, origin)
        fill(student, origin)
        yield Source(
            folder=folder,
            experiment=chosen.experiment,
            origin=origin,
            student=student.cpu().eval(),
            results=results(chosen.experiment.output, origin),
            environment=table(folder / "env.json"),
        )


def built(experiment: Experiment, origin: Origin) -> nn.Module:
    """The student as the run made it, before it was trained; of one that is saved whole, without merged edits."""
    return model(merged(experiment) if origin.name in SAVED else experiment, experiment.student, "student")


def staged(plan: Sequence[Stage], stage: str | None) -> Stage:
    """The stage of that name, or the last one; raises ExportError when there is none."""
    names = [each.name for each in plan]
    if stage is None:
        return plan[-1]
    if stage not in names or not stage:
        hint = words.hint(stage, names) if plan[0].name else "the run has no stages"
        raise ExportError(f"there is no stage {stage!r}; {hint}")
    return plan[names.index(stage)]


def located(experiment: Experiment, checkpoint: str) -> Origin:
    """Where the weights of a checkpoint are: `final`, `best`, `step 120`; raises ExportError when there is none."""
    options = {component.type: component.options for component in experiment.callbacks}
    output, text = experiment.output, checkpoint.strip()
    there = {name: output / str(options[kind].folder) for name, kind in SAVED.items() if kind in options}
    there = {name: place for name, place in there.items() if place.is_dir()}
    store = Store(output / str(options["checkpoint"].folder))
    if text in there:
        return Origin(text, there[text])
    number = STEP.fullmatch(text)
    if number and int(number[1]) in store.steps():
        return Origin(f"step {int(number[1])}", store.place(int(number[1])), averaged="ema" in options)
    known = [*there, *(f"step {step}" for step in sorted(store.steps()))]
    if text == "best" and "best" not in options:
        raise ExportError(f'{output} keeps no best student: it has no callback "best"; {words.hint(text, known)}')
    status = table(output / STATUS).get("status")
    ended = f" (the run is {status}, and it is written at the end)" if text == "final" and status != "done" else ""
    raise ExportError(f"{output} has no checkpoint {text!r}{ended}; {words.hint(text, known)}")


SAVED = {"final": "weights", "best": "best"}
"""Students that load by themselves, and the callbacks that write them."""


def results(output: Path, origin: Origin) -> dict[str, Any]:
    """The metrics of an exported student, as the run wrote them down; none if it was not evaluated."""
    if origin.name == "final":
        found = table(output / STATUS).get("metrics")
    elif origin.name == "best":
        found = table(origin.folder / "metrics.json").get("metrics")
    else:
        facts = table(origin.folder / MANIFEST).get("facts") or {}
        found = facts.get("metrics") if facts.get("last_eval_step") == facts.get("step") else None
    return dict(found) if isinstance(found, dict) else {}


def tried(source: Source, most: int) -> tuple[list[Tensors], list[str]]:
    """Up to so many batches of the evaluation data, else of the training data, as the student gets them; and notes.

    Of several tasks each gives some, as long as the student gets the same keys. Raises DataError when they do not fit
    the student, ExportError for what is no tensor.
    """
    found: list[Tensors] = []
    notes = []
    for task, part in source.experiment.parts.items():
        which = "train" if part.data.evaluate is None else "evaluate"
        names = Names(**{field.name: getattr(part.data, field.name) for field in attrs.fields(Names)})
        share = -(-most // len(source.experiment.parts))
        with closing(feed(short(source.experiment, task), task, which)) as loader:
            for batch in islice(loader.epoch(1), share):
                own = parted(batch, "student")
                inputs = {key: own[key] for key in accepted(source.student, own, names.kept)}
                require_tensors(inputs)
                if found and inputs.keys() != found[0].keys():
                    notes.append(f"Task {task} gives the student {words.several(inputs)}; that was not tried.")
                    break
                found.append(inputs)
    return found, notes


def short(experiment: Experiment, task: str) -> Experiment:
    """The same with small batches, made by this process."""
    data = experiment.parts[task].data
    small = min(data.batch_size, data.evaluate_batch_size or ROWS, ROWS)
    data = attrs.evolve(data, batch_size=small, evaluate_batch_size=None, workers=0)
    if not experiment.tasks:
        return attrs.evolve(experiment, data=data)
    return attrs.evolve(experiment, tasks={**experiment.tasks, task: attrs.evolve(experiment.tasks[task], data=data)})


def require_tensors(inputs: Mapping[str, Any]) -> None:
    """Raise ExportError for an input that is no tensor."""
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"the student gets {name!r}, a {type(value).__name__}; what is exported takes tensors only"
            )
