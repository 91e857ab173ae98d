"""Layer maps: which block of the teacher each block of the student imitates, as `[[losses]]` tables to paste."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs
import tomli_w

from hookbrew.errors import HookbrewError
from hookbrew.taps import spelling
from hookbrew.taps.layout import Block, Layout, Stack
from hookbrew.words import hint, several


@attrs.frozen
class Match:
    """A stack of the student, and blocks of a stack of the teacher, one for each of its own."""

    rule: str
    student: str
    """A selector of all the student's blocks."""
    teacher: str
    """A selector of those blocks of the teacher that are imitated."""
    blocks: tuple[tuple[int, int], ...]
    """The numbers of student and teacher blocks, from 0."""
    widths: tuple[tuple[int, int], ...]
    """Features of the hidden states of each pair."""
    comment: str
    """Both stacks in words."""

    def table(self) -> dict[str, Any]:
        """The `[[losses]]` table, with a projection where widths differ."""
        table = {"type": "hidden_mse", "student": self.student, "teacher": self.teacher}
        return table | ({"projection": "linear"} if any(mine != theirs for mine, theirs in self.widths) else {})


def uniform(student: int, teacher: int) -> list[int]:
    """Spread over the teacher, its last block included: student block i of n (from 1) imitates ceil(i m / n)."""
    return [-(-number * teacher // student) - 1 for number in range(1, student + 1)]


def last(student: int, teacher: int) -> list[int]:
    """The last blocks of the teacher."""
    return list(range(teacher - student, teacher))


RULES: Final[Mapping[str, Callable[[int, int], list[int]]]] = {"uniform": uniform, "last": last}
"""Given the numbers of blocks of student and teacher: the teacher's block for each of the student's, from 0."""


def match(student: Layout, teacher: Layout, rule: str = "uniform") -> tuple[Match, ...]:
    """Pair the stacks of two models in order, and their blocks by a rule of RULES.

    Raises HookbrewError when a model has no stack, the numbers of stacks differ, the student is deeper, or the
    hidden states of a pair differ in more than their last dimension.
    """
    if rule not in RULES:
        raise HookbrewError(f"there is no layer map {rule!r}; {hint(rule, RULES)}")
    for side, found in (("student", student), ("teacher", teacher)):
        if not found.stacks:
            raise HookbrewError(f"the {side}, a {found.model}, has no stack of equal blocks that a layer map could use")
    if len(student.stacks) != len(teacher.stacks):
        raise HookbrewError(
            f"the student has {stacks(student)}, and the teacher {stacks(teacher)}; a layer map pairs them one to one"
        )
    sides = zip(student.stacks, student.prefixes, teacher.stacks, teacher.prefixes, strict=True)
    return tuple(matched(rule, (mine, here), (theirs, there)) for mine, here, theirs, there in sides)


def stacks(layout: Layout) -> str:
    """The stacks of a model in a sentence."""
    size = len(layout.stacks)
    return f"{size} stack{'s' * (size > 1)} ({several(stack.path or 'the model' for stack in layout.stacks)})"


def matched(rule: str, student: tuple[Stack, str], teacher: tuple[Stack, str]) -> Match:
    """Two stacks, each with its prefix, block by block."""
    (mine, here), (theirs, there) = student, teacher
    count, most = len(mine.blocks), len(theirs.blocks)
    if count > most:
        raise HookbrewError(
            f"the student is deeper: {count} blocks in '{mine.path}', and the teacher has {most} in '{theirs.path}'"
        )
    numbers = RULES[rule](count, most)
    return Match(
        rule=rule,
        student=spelling.blocks(mine, here, range(count)),
        teacher=spelling.blocks(theirs, there, numbers),
        blocks=tuple(enumerate(numbers)),
        widths=tuple(widths(mine.blocks[own], theirs.blocks[other]) for own, other in enumerate(numbers)),
        comment=f"{rule}: the student's {described(mine)}; the teacher's {described(theirs)}",
    )


def widths(student: Block, teacher: Block) -> tuple[int, int]:
    """The features of two hidden states; HookbrewError if a projection of these could not make them equal."""
    for side, block in (("student", student), ("teacher", teacher)):
        if not block.shape:
            raise HookbrewError(f"the output of '{block.spot.path}' in the {side} is not a tensor with a shape")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise HookbrewError(
            f"the outputs of '{student.spot.path}' in the student {student.shape} and of '{teacher.spot.path}' in the"
            f" teacher {teacher.shape} differ before the last dimension; hidden_mse compares position by position"
        )
    return student.shape[-1], teacher.shape[-1]


def described(stack: Stack) -> str:
    """Depth, class and width of a stack."""
    found = dict.fromkeys(block.shape[-1] for block in stack.blocks if block.shape)
    return f"{len(stack.blocks)} {stack.kind} of width {several(found)}"


def as_toml(matches: Iterable[Match]) -> str:
    """The tables as they stand in a configuration file, each below a comment that says what it pairs."""
    return "\n".join(f"# {match.comment}\n[[losses]]\n{tomli_w.dumps(match.table())}" for match in matches).rstrip()


def as_data(matches: Iterable[Match]) -> dict[str, Any]:
    """The same as plain data: `matches` with numbers of blocks and widths, and `losses`, the tables."""
    found = list(matches)
    return {"matches": [attrs.asdict(match) for match in found], "losses": [match.table() for match in found]}
