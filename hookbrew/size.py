"""How large a model is, module by module: numbers that are trained and not, memory, and what is shared.

Parameters that several modules share (tied embeddings) are counted once in every module that holds them, so
that rows side by side may add up to more than the row above; the last column says with whom.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from hookbrew.taps import unwrap
from hookbrew.words import aligned, several


@attrs.frozen
class Row:
    """One module, or several equal neighbours in a container."""

    path: str
    """`encoder.layer[0:12]`; '' for the model."""
    depth: int
    kind: str
    """The class."""
    count: int
    """How many modules the row stands for; the numbers below are of each."""
    parameters: int
    trained: int
    """Parameters that require a gradient."""
    buffers: int
    bytes: int
    """Of parameters and buffers."""
    shared: tuple[str, ...] = ()
    """Names of the parameters outside, that are the same tensors as some inside."""


@attrs.frozen
class Params:
    """The rows of one model; the first is the model."""

    model: str
    rows: tuple[Row, ...]

    @property
    def whole(self) -> Row:
        """The model's own row."""
        return self.rows[0]

    def __str__(self) -> str:
        head = ("module", "class", "parameters", "share", "trained", "buffers", "MiB", "shared with")
        return "\n".join(aligned([head, *(cells(row, self.whole) for row in self.rows)], right=(2, 3, 4, 5, 6)))


def params(model: nn.Module, depth: int = 2) -> Params:
    """Count the parameters and buffers of a model and of its modules down to a depth; wrappers are looked through."""
    inner = unwrap(model)
    names: dict[int, list[str]] = {}
    for name, tensor in inner.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return Params(type(inner).__name__, tuple(Count(names, depth).rows([("", inner)], "", "", 0)))


@attrs.frozen
class Count:
    """The walk down a model."""

    names: dict[int, list[str]]
    """All names of each parameter, by the identity of the tensor."""
    most: int

    def rows(self, group: Sequence[tuple[str, nn.Module]], path: str, first: str, depth: int) -> Iterator[Row]:
        """The row of equal modules, then those below the first of them.

        path: what the row is called; first: the real path of the first module.
        """
        module = group[0][1]
        parameters, buffers = list(module.parameters()), list(module.buffers())
        yield Row(
            path=path,
            depth=depth,
            kind=type(module).__name__,
            count=len(group),
            parameters=numbers(parameters),
            trained=numbers([parameter for parameter in parameters if parameter.requires_grad]),
            buffers=numbers(buffers),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in (*parameters, *buffers)),
            shared=self.outside(parameters, first) if len(group) == 1 else (),
        )
        if depth < self.most:
            for name, inside in grouped(module):
                below = joined(path, name)
                yield from self.rows(inside, below, joined(first, inside[0][0]), depth + 1)

    def outside(self, parameters: Sequence[Tensor], first: str) -> tuple[str, ...]:
        """The names of the parameters that do not lie below a path."""
        every = (name for parameter in parameters for name in self.names[id(parameter)])
        return tuple(name for name in every if first and not name.startswith(f"{first}."))


def numbers(tensors: Sequence[Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(tensor.numel() for tensor in tensors)


def joined(path: str, name: str) -> str:
    """The path of a child; an index needs no dot."""
    return path + name if name.startswith("[") or not path else f"{path}.{name}"


def grouped(module: nn.Module) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """The children with their names; equal neighbours in a numbered container as one, `[0:12]`."""
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    if not all(name.isdigit() for name in module._modules):
        yield from ((name, [(name, child)]) for name, child in children)
        return
    for _, same in itertools.groupby(children, key=lambda item: alike(item[1])):
        group = list(same)
        start, stop = group[0][0], int(group[-1][0]) + 1
        yield (f"[{start}]" if len(group) == 1 else f"[{start}:{stop}]"), group


def alike(module: nn.Module) -> Any:
    """What two modules have in common if they may share a row."""
    shapes = [(name, tuple(parameter.shape), parameter.requires_grad) for name, parameter in module.named_parameters()]
    return type(module).__name__, shapes


def cells(row: Row, whole: Row) -> tuple[str, ...]:
    """One line of the table."""
    times = f"{row.count} x " if row.count > 1 else ""
    return (
        "  " * row.depth + (row.path or "model"),
        row.kind,
        f"{times}{row.parameters:,}",
        f"{100 * row.count * row.parameters / max(1, whole.parameters):.1f} %",
        f"{row.trained:,}",
        f"{row.buffers:,}" if row.buffers else "",
        f"{row.count * row.bytes / 2**20:,.2f}",
        several(row.shared, most=2),
    )


def compared(student: Params, teacher: Params) -> str:
    """Both models side by side, and how many times smaller the student is."""
    rows: list[tuple[str, ...]] = [("", f"student {student.model}", f"teacher {teacher.model}", "teacher / student")]
    for name in ("parameters", "trained", "buffers", "bytes"):
        ours, theirs = getattr(student.whole, name), getattr(teacher.whole, name)
        rows.append((name, f"{ours:,}", f"{theirs:,}", f"{theirs / ours:.2f}" if ours else ""))
    return "\n".join(aligned(rows, right=(1, 2, 3)))
