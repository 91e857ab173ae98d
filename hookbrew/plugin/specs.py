"""The hooks of a plugin: one per kind of component, all with the one parameter `register`.

    from hookbrew.plugin import hookimpl

    @hookimpl
    def hookbrew_register_losses(register):
        register("dkd", "hookbrew_dkd.loss:DKD")

`register(name, target)` says that `name` stands for the options class `target`, a class or `module:Class`.
A string is imported when a configuration, `hookbrew plugins show` or a test names it, not before: a
plugin's own module shall import no torch. Names match `[a-z][a-z0-9_]*`; registering changes nothing
until a configuration uses the name.
"""

from __future__ import annotations

from typing import Protocol

import pluggy

from hookbrew.options import KINDS

PROJECT = "hookbrew"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

PREFIX = "hookbrew_register_"
HOOKS = {PREFIX + kind: kind for kind in KINDS}
"""The name of a hook -> the kind that it registers."""


class Register(Protocol):
    """What a hook is given; it knows which plugin it belongs to."""

    def __call__(self, name: str, target: str | type) -> None:
        """Let `name` stand for `target`: an options class, or `module:Class` to import it when needed."""


@hookspec
def hookbrew_register_losses(register: Register) -> None:
    """What the student is pulled towards.

    `build()` gives a function (or an nn.Module, if it learns or remembers) of any of `student, teacher, mask, labels`
    and `index`, the numbers of the samples, that returns a scalar: the mean over the valid positions.

    Four class variables say what for. `takes`: "logits" (without it), "hidden", "features" (hidden tensors of any
    widths), "flow" (a list of two hidden tensors a side), "attention" (probabilities or scores), "probabilities",
    "scores", or "relation" (queries, keys, values).
    `counts`: "positions", "pairs" of them, or "samples": what it is a mean over, where its tensors do not tell.
    One on an attention that says positions or pairs gets large maps some samples at a time, each with its own mask.
    `marks`: false for a loss that counts rows whose label is -100, too.
    `soft`: true for a loss whose labels may be soft, floats (..., classes), so that a row of zeros is no label.
    """


@hookspec
def hookbrew_register_schedules(register: Register) -> None:
    """Numbers over training progress: for the weight of a loss, or the learning rate.

    `build()` gives a function from progress in [0, 1] to a multiplier.
    """


@hookspec
def hookbrew_register_projections(register: Register) -> None:
    """Trained maps from the student's width to the teacher's.

    `build(student, teacher)`, with the two widths, gives an nn.Module from (..., student) to (..., teacher).
    """


@hookspec
def hookbrew_register_augments(register: Register) -> None:
    """Changes of a training batch, before teacher and student see it.

    `build()` gives a function of a batch (a dict of tensors) and a torch.Generator that returns a new batch.
    """


@hookspec
def hookbrew_register_callbacks(register: Register) -> None:
    """Observers of a run.

    `build()` gives an object whose public methods are named for events; each takes exactly `(self, state)`, and may
    have filters, `@when(every=100)`. `priority`, an integer, moves it before (below 0) or after (above 0) the others.
    `optional = True` is for one that only watches: what it raises disables it, and the run goes on.
    `hookbrew plugins list --events` lists all.
    """


@hookspec
def hookbrew_register_edits(register: Register) -> None:
    """Changes of a model, made when it is built.

    `build()` gives a function of a `hookbrew.Surgery` of the model, which edits it by that and nothing else, so that
    all can be undone. A SurgeryError is told at the option `path`, if there is one.
    One that goes on in the run may have `watch()`, which gives a callback of it, or None: `lora` merges at the end.
    """
