"""Which axes of a student's inputs may be of any size.

B batch, L tokens. The first axis is that of samples; others are those that differ between the batches of the data, and
the second one of numbers (B, L) that are whole: tokens, masks, positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from hookbrew.loop import size_of

Tensors = dict[str, Tensor]
"""A batch as a student gets it, or what it gives."""
Axes = dict[str, dict[int, str]]
"""By input and axis: what the axis is called."""

BATCH = "batch"
LENGTH = "length"


def free(batches: Sequence[Tensors]) -> dict[str, list[int]]:
    """The axes of each input that one would like to be of any size."""
    found: dict[str, list[int]] = {}
    for name, first in batches[0].items():
        sizes = [batch[name].shape for batch in batches if batch[name].dim() == first.dim()]
        samples = first.dim() > 0 and all(len(batch[name]) == size_of(batch) for batch in batches)
        axes = [0] if samples else []
        for axis in range(1, first.dim()):
            tokens = first.dim() == 2 and not first.is_floating_point()
            if first.shape[axis] > 1 and (len({size[axis] for size in sizes}) > 1 or (tokens and samples)):
                axes.append(axis)
        found[name] = axes
    return found


def example(batch: Tensors, axes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A batch to trace with: as few samples as are not 1, nor the size of any other axis, so that none is confused."""
    sampled = [name for name, free in axes.items() if 0 in free]
    if not sampled:
        return dict(batch)
    others = {size for tensor in batch.values() for size in tensor.shape[1:]}
    rows = next(size for size in range(2, len(others) + 3) if size not in others)
    return {name: repeated(tensor, rows) if name in sampled else tensor for name, tensor in batch.items()}


def repeated(tensor: Tensor, rows: int) -> Tensor:
    """So many rows of a tensor, from the first on again where there are fewer."""
    return tensor[[row % len(tensor) for row in range(rows)]]


def variants(batches: Sequence[Tensors], axes: Axes, mask: str) -> list[dict[str, Tensor]]:
    """Batches that the data did not have: one sample, a shorter text, and padding where there was none."""
    first, made = batches[0], list[dict[str, Tensor]]()
    sampled = {name for name, free in axes.items() if free.get(0) == BATCH}
    if sampled:
        made.append({name: tensor[:1] if name in sampled else tensor for name, tensor in first.items()})
    longest = {
        label: size
        for name, free in axes.items()
        for axis, label in free.items()
        if label != BATCH and (size := first[name].shape[axis]) > 1
    }
    if longest:
        made.append({name: cut(tensor, axes.get(name, {}), longest) for name, tensor in first.items()})
    there = first.get(mask)
    if there is not None and there.dim() == 2 and there.shape[1] > 1 and all(bool(b[mask].all()) for b in batches):
        shorter = there.clone()
        shorter[::2, there.shape[1] // 2 :] = 0
        made.append({**first, mask: shorter})
    return made


def cut(tensor: Tensor, free: Mapping[int, str], longest: Mapping[str, int]) -> Tensor:
    """A tensor with those axes half as long."""
    for axis, label in free.items():
        if label in longest:
            tensor = tensor.narrow(axis, 0, max(1, longest[label] // 2))
    return tensor


def fitting(batches: Sequence[Tensors], traced: Mapping[str, Tensor], axes: Axes) -> list[Tensors]:
    """The batches whose other axes are of the size that was traced."""
    return [
        batch
        for batch in batches
        if all(
            tensor.dim() == traced[name].dim()
            and all(
                axis in axes.get(name, {}) or size == traced[name].shape[axis] for axis, size in enumerate(tensor.shape)
            )
            for name, tensor in batch.items()
        )
    ]
