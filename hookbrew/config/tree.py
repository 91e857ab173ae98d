"""The experiment: what a configuration says, after every check that needs no model.

Each class is a table of the TOML file, each field a key. A *factory* is any importable callable with its
arguments; a *component* is a name that some plugin registered, with the options that it declares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs

from hookbrew.config.cache import Cache
from hookbrew.config.derived import Derived
from hookbrew.options import at_least, positive

COMPONENTS = {
    "losses": "losses",
    "projection": "projections",
    "schedule": "schedules",
    "lr_schedule": "schedules",
    "augments": "augments",
    "callbacks": "callbacks",
    "surgery": "edits",
}
"""The fields below that hold components, and of which kind."""

EVALUATED = ("evaluate", "early_stop", "best")
"""Callbacks that would do nothing without an evaluation."""


@attrs.frozen(kw_only=True)
class Factory:
    """A callable named by `factory = "module:attribute"`; the other keys are its arguments."""

    factory: str
    """`module:attribute`, where the attribute may have dots: `transformers:AutoModel.from_pretrained`."""
    arguments: dict[str, Any] = attrs.field(factory=dict)
    """Keyword arguments; a table that has a `factory` key is built first, wherever it stands."""


@attrs.frozen(kw_only=True)
class Component:
    """A registered name with its options."""

    type: str
    options: Any
    """An instance of the options class that the name stands for."""


@attrs.frozen(kw_only=True)
class Edit(Component):
    """One `[[surgery]]` table: an edit of a model, made when that is built."""

    model: str = "student"
    """Which model, by its place in the file: student, teacher, teachers.NAME, tasks.NAME.teacher."""


EDITED = frozenset({"model"})
"""The keys of an edit's table that are not options of the edit."""


@attrs.frozen(kw_only=True)
class Weight:
    """What a loss is multiplied with, or an option of it: `base`, times a schedule's value at this point of the run."""

    words: ClassVar[str] = "number, or a schedule"

    base: float = 1.0
    schedule: Component | None = None


def filled(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """Raise ValueError for a list or table that names nothing, at any depth; a validator of attrs."""
    inside = [value, *value.values()] if isinstance(value, dict) else [value]
    if any(isinstance(item, (list, dict)) and not item for item in inside):
        raise ValueError(f"'{field.name}' names nothing: write one, or leave this key out")


def countable(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """Raise ValueError for a number of classes below 1; a validator of attrs."""
    if isinstance(value, int) and value < 1:
        raise ValueError(f"'{field.name}' must be >= 1: {value}")


def weighing(_: Any, field: attrs.Attribute[Any], value: dict[str, float]) -> None:
    """Raise ValueError for a weight that is not above 0; a validator of attrs."""
    for name, weight in value.items():
        if weight <= 0:
            raise ValueError(f"'{field.name}' must be > 0: {name} is {weight}")


@attrs.frozen(kw_only=True)
class Loss:
    """One `[[losses]]` table: where its tensors come from, and the options of the loss itself."""

    type: str
    options: Any
    """An instance of the loss's options class; an option that varies has its base value there."""
    varying: dict[str, Weight] = attrs.field(factory=dict)
    """The options that a schedule moves: written as a table in place of the number."""
    name: str | None = None
    """The name in logs; the type when left out."""
    student: str | list[str] | None = attrs.field(default=None, validator=filled)
    """A selector on the student, or a list of them; the logits when left out."""
    teacher: str | list[str] | dict[str, str | list[str]] | None = attrs.field(default=None, validator=filled)
    """A selector on the teacher, or a list; for several teachers a table by their names. The logits when left out."""
    projection: Component | Factory | None = None
    """Maps the student's features to the teacher's width: a registered name, or a factory of a module."""
    weight: Weight = Weight()
    mask: bool | str = True
    """Whether, or by which key of the batch, padding is left out."""
    labels: str | list[str] | None = attrs.field(default=None, validator=filled)
    """The key of the batch that holds the labels, or a list; `data.labels` when left out."""
    optimizer: dict[str, Any] | None = None
    """Options of the optimizer for the projection and what else this loss trains: `{ lr = 1e-3 }`; those of the
    student when left out."""


PLACEMENT = frozenset(field.name for field in attrs.fields(Loss)) - {"type", "options", "varying"}
"""The keys of a loss's table that are not options of the loss."""


@attrs.frozen(kw_only=True)
class Data:
    """`[data]`: what the models are fed with."""

    train: Factory
    """Gives the training samples: an object with `len()` and integer indices."""
    evaluate: Factory | None = None
    """Gives the samples for evaluation."""
    batch_size: int = at_least(1, 32)
    """Samples in one forward pass."""
    evaluate_batch_size: int | None = at_least(1, None)
    """Samples in one forward pass of the evaluation; `batch_size` when left out."""
    shuffle: bool = True
    """Draw the samples in a new order every epoch, a function of seed and epoch alone."""
    workers: int = at_least(0, 0)
    """Processes that load samples; 0 loads them in the main process."""
    collate: Factory | None = None
    """Gives the function that makes a batch of a list of samples."""
    pad: dict[str, int | float] = attrs.field(factory=dict)
    """For keys whose samples differ in length: the value that fills them up."""
    fields: list[str] = attrs.field(factory=list)
    """Names for the parts of samples that are tuples: `["input", "labels"]`."""
    labels: str | list[str] = attrs.field(default="labels", validator=filled)
    """The key of the batch that holds the labels; -100 marks a position or sample without one. A list where the model
    has several logits: one key for each."""
    mask: str = "attention_mask"
    """The key of the batch that is 1 where a position counts and 0 where it is padding."""
    logits: str | list[str] = attrs.field(default="logits", validator=filled)
    """The selector of the student's logits, for evaluation and for losses that name none; a list where there are
    several, which then holds for teachers too."""
    causal: bool | None = None
    """Whether logits at a position are of the next token: true compares them with that one's label, under its mask."""
    classes: int | Literal["tokens"] | None = attrs.field(default=None, validator=countable)
    """How many of the logits are classes: the rest is padding of a vocabulary. "tokens": each token is one, as in
    where a span begins, and padding is none."""
    aligned: bool = False
    """Where batches have parts for teacher and student: whether position i is the same token for both, though they
    differ; without it, losses that compare positions refuse such texts."""
    index: str = "index"
    """The key of the batch that holds the number of each sample, for losses that remember samples; made if missing."""


@attrs.frozen(kw_only=True)
class Merge:
    """`[merge]`: how several teachers become one, for losses on logits."""

    by: Literal["logits", "probabilities"] = "logits"
    """What is averaged: the logits, or their softmax at the loss's temperature."""
    weights: dict[str, float] = attrs.field(factory=dict, validator=weighing)
    """How much each teacher counts, by name; 1 for those that are not named."""
    confidence: Literal["labels", "entropy"] | None = None
    """Count a teacher more in rows where it agrees with the label, or is sure."""


@attrs.frozen(kw_only=True)
class Task:
    """`[tasks.NAME]`: what one of several tasks of a student learns, from whom, on which data."""

    data: Data
    losses: list[Loss] = attrs.field(validator=attrs.validators.min_len(1))
    """What is minimised: the weighted sum of these."""
    teacher: Factory | None = None
    """The model that is imitated."""
    teachers: dict[str, Factory] | None = None
    """Several of them, by name."""
    merge: Merge | None = None
    """How they become one."""


@attrs.frozen(kw_only=True)
class Train:
    """`[train]`: how long, on what, and how often to look."""

    epochs: int | None = at_least(1, None)
    """Passes over the training data. Either this or `steps`."""
    steps: int | None = at_least(1, None)
    """Optimizer updates. Either this or `epochs`."""
    accumulate: int = at_least(1, 1)
    """Batches whose gradients make one step."""
    clip_grad_norm: float | None = positive(None)
    """The largest norm of all trained gradients together; nothing is clipped when left out."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 autocast on a GPU that has it, else fp32; fp16 multiplies losses so that gradients are not 0."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is not finite ends the run, or its update is left out; ten in a row end it too.
    fp16 always leaves them out."""
    out_of_memory: Literal["stop", "halve"] = "stop"
    """A forward pass that is out of memory ends the run, or is made again with half the samples: the same gradient."""
    device: str = "auto"
    """`auto` takes CUDA, then MPS, then the CPU; or a device as torch writes it: `cuda:1`."""
    stop_teacher: bool = True
    """Where no loss reads the teacher's output, let it stop after the last layer that one reads."""
    teacher_precision: Literal["same", "bf16", "fp16"] = "same"
    """`bf16` or `fp16` casts the teacher's matrices: half the memory, and faster where the device computes in them.
    What it gives is rounded so; losses are computed in fp32 all the same."""
    chunked: bool | Literal["auto"] = "auto"
    """Compute losses on logits in chunks of rows, from hidden states and output heads: the whole logits are never made.
    `auto` does so where they are large, false never; true refuses losses and models that need them whole."""
    shard: Literal["none", "student", "both"] = "none"
    """Of several processes: each has the whole student and teacher; or a part of the student, its gradients and moments
    (FSDP2); or of the teacher too."""
    timeout: float = positive(600.0)
    """Seconds that a process waits for the others before it gives up."""
    compile: Literal["none", "student", "teacher", "both"] = "none"
    """Which models torch.compile makes faster kernels for; the first steps take longer, and the last bits differ."""
    threads: int | None = at_least(1, None)
    """CPU threads of torch during the run; small models are fastest on 1."""
    log_every: int = at_least(1, 10)
    """Steps between two rows of metrics."""
    evaluate_every: int | None = at_least(1, None)
    """Steps between two evaluations; once per epoch when left out."""
    tau: float | None = at_least(0.0, None)
    """Of several tasks, one is drawn for each batch with probability ~ (number of samples) ^ tau; 1 when left out."""


@attrs.frozen(kw_only=True)
class Optimizer:
    """`[optimizer]`: a class of torch.optim, or `module:Class`; the other keys are its arguments."""

    type: str = "AdamW"
    lr: float = positive(5e-5)
    """The base learning rate, which `[lr_schedule]` multiplies."""
    arguments: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Experiment:
    """A whole configuration file."""

    output: Path
    """The run folder, relative to the file; it must not exist yet."""
    student: Factory | Derived
    """The model that is trained: of a factory, or `from` a teacher."""
    train: Train
    data: Data | None = None
    """What the models are fed with; required unless there are tasks, which have their own."""
    losses: list[Loss] | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.min_len(1))
    )
    """What is minimised: the weighted sum of these; required unless there are tasks."""
    teacher: Factory | None = None
    """The model that is imitated; without one the run is plain supervised training."""
    teachers: dict[str, Factory] | None = None
    """Several of them, by name, in place of `teacher`."""
    merge: Merge | None = None
    tasks: dict[str, Task] | None = None
    """Several tasks of one student, by name, in place of data, losses and teachers of its own."""
    seed: int = at_least(0, 0)
    """Fixes initial weights, order of samples, augmentation and dropout."""
    plugins: list[str] = attrs.field(factory=list)
    """Plugins that must be installed, with versions: `["dkd>=0.3"]`."""
    pythonpath: list[Path] = attrs.field(factory=list)
    """Folders, relative to the file, in which the modules of factories are searched first."""
    optimizer: Optimizer = Optimizer()
    lr_schedule: Component | None = None
    """Multiplies the learning rate; constant when left out."""
    augments: list[Component] = attrs.field(factory=list)
    """Changes of each training batch, in this order, before teacher and student see it."""
    callbacks: list[Component] = attrs.field(factory=list)
    """Observers of the run, called in this order."""
    cache: Cache | None = None
    surgery: list[Edit] = attrs.field(factory=list)
    """Edits of the models, made in this order when they are built, before anything is attached to them."""

    @property
    def parts(self) -> dict[str, Task]:
        """The tasks by name; a run that has none is one task without a name."""
        if self.tasks or self.data is None:
            return self.tasks or {}
        alone = Task(
            data=self.data, losses=self.losses or [], teacher=self.teacher, teachers=self.teachers, merge=self.merge
        )
        return {"": alone}
