"""Maps of what student and teacher attend to, and of how similar their layers are, as images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from hookbrew import words
from hookbrew.cka import alike, rows
from hookbrew.drawing import Picture, Side, attention, similarity
from hookbrew.errors import CallbackError, DataError, SelectorError
from hookbrew.loop import State
from hookbrew.modes import evaluating
from hookbrew.objective import parted
from hookbrew.plugin import at_least, options, when
from hookbrew.taps import parse
from hookbrew_plugins.callbacks.board import board
from hookbrew_plugins.callbacks.inside import inside
from hookbrew_plugins.callbacks.sitter import Sitter, named, plain, short, sitting

MASK = "attention_mask"
PLACE = "images"
"""The folder, in the run folder, from which `hookbrew report` takes images."""


def selector(_: Any, attribute: Any, value: str) -> None:
    """A validator of attrs: raises ValueError for what is no selector."""
    try:
        if value or "attention" not in attribute.name:
            parse(value)
    except SelectorError as error:
        raise ValueError(f"'{attribute.name}' {error}") from error


@options
class Maps:
    """Draws maps of attention, and the similarity of every student layer with every teacher layer, as images.

    They go to images/ in the run folder, which `hookbrew report` shows, and to TensorBoard. Similarity is linear CKA
    (Kornblith et al. 2019) of the tokens of a step's batch, or of its samples where layers have no tokens in common;
    few of them look more alike than many. Attention is of the first sample, a mean over heads. Padding is left out.

    The models run once more for it, in evaluation mode and in their own precision, and nothing of the training is
    changed. Models that FSDP shards are refused.
    """

    every: int = at_least(1, 500)
    """Steps between two drawings; the first step has one too."""
    student: str = attrs.field(default="hidden[*]", validator=selector)
    """The layers of the student, a selector as encoder.layer[*]; what goes in and out of each block when left out."""
    teacher: str = attrs.field(default="hidden[*]", validator=selector)
    """The layers of the teacher, or of each teacher."""
    student_attention: str = attrs.field(default="attention[*]", validator=selector)
    """Attention of the student, as encoder.layer[*].attention.self:attn; "" for none."""
    teacher_attention: str = attrs.field(default="attention[*]", validator=selector)
    """Attention of the teacher; "" for none."""
    mask: str = MASK
    """The key of the batch that says which tokens are there, (batch, tokens); "" if all are."""
    folder: str = attrs.field(default="tb/maps", validator=inside)
    """The folder of the event files for TensorBoard, in the run folder; one of its own."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError where there is nothing to draw with."""
        if find_spec("matplotlib") is None:
            raise ValueError('drawing needs matplotlib, which is not installed: pip install "hookbrew[report]"')

    def build(self) -> Artist:
        """The callback."""
        return Artist(self)


@attrs.define(eq=False)
class Artist:
    """Draws at the end of a step, and asks nothing of the device in any other."""

    priority: ClassVar[int] = 80
    optional: ClassVar[bool] = True

    _options: Maps
    _student: Sitter | None = None
    _teachers: dict[str, Sitter] = attrs.field(factory=dict)
    _hooks: ExitStack = attrs.field(factory=ExitStack)
    """On the models while they run for a step that is drawn."""
    _writer: Any = None

    @when(main=True)
    def run_start(self, state: State) -> None:
        """Find the layers; raises SelectorError, and CallbackError where there is nothing to compare with."""
        state.require_folder("maps")
        if state.teacher is None:
            raise CallbackError("callback 'maps' compares with a teacher, and there is none")
        told = self._options
        self._student = sitting("student", state.student, told.student, told.student_attention)
        for name, model in named(state.teacher):
            who = "teacher" if name == "teacher" else f"teacher {short(name)}"
            self._teachers[name] = sitting(who, model, told.teacher, told.teacher_attention)

    @when(main=True)
    def batch_ready(self, state: State) -> None:
        """See what the models are called with."""
        self._hooks.close()
        if state.step == 1 or state.step % self._options.every == 0:
            for one in self._sitters():
                one.given = None
                hook = one.model.register_forward_pre_hook(one.note, with_kwargs=True)
                self._hooks.callback(hook.remove)

    @when(main=True)
    def forward_end(self, state: State) -> None:
        """They have been called."""
        self._hooks.close()

    @when(main=True)
    def step_end(self, state: State) -> None:
        """Draw, if this step is one of those."""
        student = self._student
        if student is None or student.given is None:
            return
        called = {name: one for name, one in self._teachers.items() if one.given is not None}
        try:
            for name, picture in self._drawn(state, student, called):
                self._put(state, name, picture)
        finally:
            for one in self._sitters():
                one.given = None

    @when(main=True)
    def close(self, state: State) -> None:
        """Let the models go, and write what is still queued."""
        self._hooks.close()
        self._student, self._teachers = None, {}
        if self._writer is not None:
            self._writer.close()

    def _sitters(self) -> Iterator[Sitter]:
        if self._student is not None:
            yield from (self._student, *self._teachers.values())

    def _drawn(self, state: State, student: Sitter, teachers: Mapping[str, Sitter]) -> Iterator[tuple[str, Picture]]:
        """The drawings of a step, by what their files are called."""
        mask = self._mask(state, "student")
        masks = {name: self._mask(state, "teacher", name.rpartition("/")[2]) for name in teachers}
        models = (student.model, *(one.model for one in teachers.values()))
        with evaluating(*models), torch.no_grad(), plain():
            paths, ours = student.look()
            looks = {}
            for name, one in teachers.items():
                others, theirs = one.look()
                left, right, over = rows(ours, theirs, (mask, masks[name]))
                looks[name] = Side(one.name, others), alike(left, right).cpu(), over
            sides = [student.attend(mask), *(one.attend(masks[name]) for name, one in teachers.items())]
        of, step = Side("student", paths), f"step {state.step:,}"
        for name, (side, values, over) in looks.items():
            file = "similarity" if len(self._teachers) == 1 else f"similarity-{short(name).replace('/', '-')}"
            yield file, similarity(of, side, values, title=f"Layer similarity, {step}", over=over)
        if found := [side for side in sides if side is not None]:
            yield "attention", attention(found, title=f"Attention, mean over heads, first sample, {step}")

    def _mask(self, state: State, *side: str) -> Tensor | None:
        """The mask of one model's tokens; None without one. Raises DataError for another shape, or a lost one."""
        key, part = self._options.mask, parted(state.batch, *side)
        mask = part.get(key)
        if mask is None and key not in ("", MASK):
            raise DataError(f"callback 'maps': mask: the batch has no key {key!r}; {words.hint(key, part)}")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            told = f"the mask {key!r} is {shape} and not (batch, tokens)"
            raise DataError(f"callback 'maps': {told}; name another, or write mask = \"\" if every token counts")
        return mask

    def _put(self, state: State, name: str, picture: Picture) -> None:
        """Write a drawing to both places."""
        folder = state.require_folder("maps")
        picture.save(folder / PLACE / f"{name}-{state.step:08}.png")
        if self._writer is None:
            again = state.step  # what a process that was killed drew of this step and those to come is dropped
            self._writer = board(folder / self._options.folder, again)
        self._writer.add_image(f"maps/{name}", picture.pixels, state.step, dataformats="HWC")
