"""The whole run of a configuration, from its beginning or from a checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from hookbrew import factory, folder
from hookbrew.chance import kept_random, sow
from hookbrew.config import Document, read
from hookbrew.earlier import held
from hookbrew.errors import FolderError, PreemptedError, ResumeError
from hookbrew.loop import Loop, State, chosen, finite, mix
from hookbrew.models import Shelf
from hookbrew.plan import Stage, placed, planned, root, written
from hookbrew.plugin import Catalogue
from hookbrew.prepare import Prepared, looped, prepare
from hookbrew.profile import Around
from hookbrew.ranks import Ranks, joined, leading, world
from hookbrew.resume import LEVELS, Level, Resumed, compared, facts, newest, require_pace, require_run
from hookbrew.shield import shielded
from hookbrew.signals import heeded
from hookbrew.store import Checkpoint

log = logging.getLogger("hookbrew")


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
                *earlier, lessons = [prepared.lessons for prepared in made]
                if lessons is not None:
                    lessons.require_apart(each for each in earlier if each is not None)
        yield made


def run(
    path: str | Path,
    sets: Sequence[str] = (),
    *,
    catalogue: Catalogue,
    overwrite: bool = False,
    going: bool = False,
    quiet: bool = False,
    say: Callable[[str], object] = log.info,
    profile: Around | None = None,
) -> State:
    """The whole run of a configuration file: all checks, then training; returns the last state.

    sets: `key=value` settings that go over the file's. overwrite replaces an earlier run's folder, after all checks of
    this one have passed; going goes on with that run instead, if it has a checkpoint. say is told which of several
    stages begins. profile: measure some steps of each stage on the way.

    Raises ConfigError and the other errors of `hookbrew.errors`, PreemptedError after a signal; an exception of a
    plugin or of the user's code passes through, noted.
    """
    document = read(path, sets)
    plan = planned(document, catalogue, quiet=quiet or not leading())
    output = root(plan)
    with together(plan) as ranks:
        if going and ranks.first((output / folder.STATUS).is_file):
            if ranks.first(lambda: newest([stage.experiment for stage in plan]))[1] is not None:
                return continued(document, plan, catalogue=catalogue, changed=True, say=say, profile=profile)
            overwrite = True  # there is nothing yet that could be lost
        ranks.first(lambda: folder.refuse(output, overwrite=overwrite))
        with built(plan, catalogue) as made:
            loops = looping(plan, made)
            files = described(document, plan, catalogue)
            ranks.first(lambda: folder.create(output, overwrite=overwrite))
            with held(output, ranks), hinted(output):
                trained(plan, loops, files=files, say=say, profile=profile)
    return loops[-1].state


@contextmanager
def together(plan: Sequence[Stage]) -> Iterator[Ranks]:
    """The processes that train meet, if several were started."""
    train = plan[0].experiment.train
    with joined(train.device, train.timeout) as ranks:
        if train.shard != "none" and ranks.size == 1:
            log.warning("note: train.shard = %r, and this process is alone: it has all of it", train.shard)
        yield ranks


def resume(
    where: str | Path,
    sets: Sequence[str] = (),
    *,
    catalogue: Catalogue,
    require: Level = "weights",
    quiet: bool = False,
    say: Callable[[str], object] = log.info,
    profile: Around | None = None,
) -> State:
    """Go on with the run in a folder from its newest checkpoint that is whole; returns the last state.

    sets: `key=value` settings that go over what the run was. say is told from where, and how exactly. Raises
    ResumeError when there is no checkpoint, or the match is worse than `require`, and else what `run` raises.
    """
    output = Path(where).absolute()
    document = read(require_run(output), [*sets, f"output={json.dumps(str(output))}"])
    plan = planned(document, catalogue, quiet=quiet or not leading())
    with together(plan):
        changed = bool(sets)
        return continued(
            document, plan, catalogue=catalogue, require=require, changed=changed, say=say, profile=profile
        )


def continued(
    document: Document,
    plan: Sequence[Stage],
    *,
    catalogue: Catalogue,
    require: Level = "weights",
    changed: bool,
    say: Callable[[str], object],
    profile: Around | None,
) -> State:
    """Train on from the newest checkpoint; changed: whether the configuration may be another than it was."""
    output, ranks = root(plan), world()
    with held(output, ranks), built(plan, catalogue) as made:
        loops = looping(plan, made)
        place, checkpoint, wrong = ranks.first(lambda: newest([stage.experiment for stage in plan]))
        if checkpoint is None:
            raise ResumeError(f"{output} has no checkpoint yet; begin anew: hookbrew run {document.path} --overwrite")
        for note in wrong:
            log.warning("%s; going on from an older one", note)
        match = compared(checkpoint.facts["exact"], loops[place].saver.facts)
        say(f"resume: {located(checkpoint, plan[place], loops[place])}\n{match}")
        if LEVELS.index(match.level) > LEVELS.index(require):
            raise ResumeError(f"{checkpoint.folder} does not match: {match}\n--require {require} was given")
        require_pace(match)
        if match.differences:  # why it was to stop may not hold any more; a callback that stands by it asks again
            checkpoint = attrs.evolve(checkpoint, facts={**checkpoint.facts, "stop_reason": None})
        files = {"resolved.toml": written(plan)} if changed else {}
        with hinted(output):
            resumed = Resumed(checkpoint, match.level)
            trained(plan, loops, files=files, say=say, place=place, resumed=resumed, profile=profile)
    return loops[-1].state


@contextmanager
def hinted(output: Path) -> Iterator[None]:
    """A run that a signal ended says how it goes on."""
    try:
        yield
    except PreemptedError as error:
        error.add_note(f"go on with: hookbrew resume {output}")
        raise


def located(checkpoint: Checkpoint, stage: Stage, loop: Loop) -> str:
    """Where a checkpoint is in its run."""
    named = f"stage {stage.name}, " if stage.name else ""
    counted = f"epoch {checkpoint.facts['epoch']}, {checkpoint.facts['batches']} batches into it"
    return f"{named}step {checkpoint.step} of {loop.state.total_steps}, {counted}"


def looping(plan: Sequence[Stage], made: Sequence[Prepared]) -> list[Loop]:
    """The loops of all stages, their checkpoints knowing what they are checkpoints of."""
    loops = []
    for stage, prepared in zip(plan, made, strict=True):
        with placed(stage.document):
            loops.append(looped(prepared, stage.experiment.output))
        loops[-1].saver.facts = facts(prepared)
    return loops


def trained(
    plan: Sequence[Stage],
    loops: Sequence[Loop],
    *,
    files: dict[str, str],
    say: Callable[[str], object],
    place: int = 0,
    resumed: Resumed | None = None,
    profile: Around | None = None,
) -> None:
    """Train one stage after the other, from `place` on, that from a checkpoint if there is one."""
    output = root(plan)
    with heeded([loop.state for loop in loops]):
        for number, (stage, loop) in enumerate(zip(plan, loops, strict=True)):
            if number < place:
                continue
            named = {"stage": stage.name} if stage.name else {}
            here = resumed if number == place else None
            told = named | ({"resumed": f"step {here.checkpoint.step}, {here.level}"} if here else {})
            with placed(stage.document), recorded(loop.state, output, last=number == len(plan) - 1, **told):
                while files:
                    name, text = files.popitem()
                    loop.ranks.first(partial(folder.write, output / name, text))
                if named:
                    say(f"stage {stage.name} ({number + 1} of {len(plan)}): {loop.state.total_steps} steps")
                with inside(stage, loop.state):
                    other = [rank] if (rank := loop.ranks.rank) else []
                    sow(mix(stage.experiment.seed, "train", *named.values(), *other))
                    with profile.around(loop, stage.experiment.output) if profile else nullcontext():
                        loop.run(here.checkpoint if here else None)
            loop.optimizer.state.clear()  # nobody asks for it again, and it is twice as large as the student


def described(document: Document, plan: Sequence[Stage], catalogue: Catalogue) -> dict[str, str]:
    """What the run is made of, by the names of files; the configuration may lie in the folder that is replaced."""
    plugins = {plugin.name: plugin.version for plugin in catalogue.plugins}
    return {
        "config.toml": Path(document.path).read_text(encoding="utf-8"),
        "resolved.toml": written(plan),
        "env.json": folder.environment(plugins),
    }


@contextmanager
def inside(stage: Stage, state: State) -> Iterator[None]:
    """The folder of a stage, made and with a status of its own; that of a run without stages is made already."""
    if not stage.name:
        yield
        return
    output = stage.experiment.output
    state.ranks.first(lambda: None if output.exists() else folder.create(output, overwrite=False))
    with recorded(state, output):
        yield


@contextmanager
def recorded(state: State, where: Path, *, last: bool = True, **named: str) -> Iterator[None]:
    """Keep `status.json` true whatever happens inside; a full disk never hides why a run ended.

    last: whether the run is done after this; else another stage comes. named: what more the status says. Callbacks that
    were disabled are listed whenever it is written, those of earlier stages and processes first.
    """
    if not state.ranks.main:
        yield
        return
    before = degraded(where)
    running = {"total_steps": state.total_steps, **named}
    folder.status(where, "running", **running, **listed(before))
    try:
        yield
    except BaseException as error:
        words = {KeyboardInterrupt: "stopped", PreemptedError: "preempted"}
        word = words.get(type(error), "failed")
        reason = f"{type(error).__name__}: {error}".strip(": ")
        with shielded():
            try:
                folder.status(where, word, step=state.step, reason=reason, **named, **listed(before, state))
            except FolderError as second:
                error.add_note(str(second))
            raise
    if last:
        facts = {"reason": state.stop_reason, "metrics": finite(state.metrics)}
        folder.status(where, "done", step=state.step, **facts, **named, **listed(before, state))
    elif state.degraded:
        folder.status(where, "running", **running, **listed(before, state))


def degraded(where: Path) -> list[Any]:
    """The callbacks that the status of a folder lists as disabled; none if there is no status."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((where / folder.STATUS).read_text(encoding="utf-8")).get("degraded")
        return found if isinstance(found, list) else []
    return []


def listed(before: Sequence[Any], state: State | None = None) -> dict[str, Any]:
    """What the status says of callbacks that were disabled: nothing, if none was."""
    every = [*before, *(state.degraded if state else ())]
    return {"degraded": every} if every else {}
