"""Data drawn by a rule, and a small net for it: spans in rows of tokens, shapes in noisy images.

The same seed draws the same data on every machine. B batch, L tokens, D channels, C classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

Sample = dict[str, Tensor]
IGNORED = -100
"""The label of what has none."""

MARK, STOP, WORDS, TOKENS = 1, 2, 3, 40
"""The mark, the stop, the first word, and the number of all tokens; 0 is padding."""

SHAPES = ("square", "frame", "cross", "saltire", "rows", "columns")
SIDE = 16
"""H and W."""


def spans(count: int, *, seed: int, labels: bool = True) -> list[Sample]:
    """Rows of words with stops, and one mark: the answer is what stands between the mark and the next stop.

    `w w 2 w 1 w w w 2 w w 2`: the mark is 1, a stop 2, and the answer goes from 5 to 7. A row has 9 to 25 tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        row, marked = list[int](), int(torch.randint(4, (), generator=generator))
        for part in range(4):
            row += words(1, 3, generator)
            if part == marked:
                start = len(row) + 1
                row += [MARK, *words(1, 4, generator)]
                end = len(row) - 1
            row.append(STOP)
        sample = {"input_ids": torch.tensor(row), "attention_mask": torch.ones(len(row), dtype=torch.long)}
        if labels:
            sample |= {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
        found.append(sample)
    return found


def words(least: int, most: int, generator: Generator) -> list[int]:
    """From `least` to `most` words."""
    number = int(torch.randint(least, most + 1, (), generator=generator))
    found: list[int] = torch.randint(WORDS, TOKENS, (number,), generator=generator).tolist()
    return found


def shapes(count: int, *, seed: int, labelled: int | None = None, noise: float = 0.6) -> list[Sample]:
    """Images (1, H, W) of one shape each, its size, place and contrast drawn, under normal noise.

    labelled: only so many of the first have a label, the others -100.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        label = int(torch.randint(len(SHAPES), (), generator=generator))
        size = int(torch.randint(7, 12, (), generator=generator))
        top, left = torch.randint(SIDE - size + 1, (2,), generator=generator).tolist()
        image = torch.randn(1, SIDE, SIDE, generator=generator) * noise
        contrast = 0.6 + 0.8 * torch.rand((), generator=generator)
        image[0, top : top + size, left : left + size] += contrast * shape(SHAPES[label], size)
        known = labelled is None or number < labelled
        found.append({"pixel_values": image, "labels": torch.tensor(label if known else IGNORED)})
    return found


def shape(name: str, size: int) -> Tensor:
    """A shape of 0 and 1, (size, size)."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    middle = (size - 1) / 2
    border = torch.minimum(rows, columns) == 0
    there = {
        "square": torch.ones_like(border),
        "frame": border | border.flip(0, 1),
        "cross": ((rows - middle).abs() < 1) | ((columns - middle).abs() < 1),
        "saltire": (rows - columns == 0) | (rows + columns == size - 1),
        "rows": rows % 2 == 0,
        "columns": columns % 2 == 0,
    }
    return there[name].float()


class Net(nn.Module):
    """Convolutions, each with a norm and a ReLU, the second and the third at half the size; then a linear head."""

    def __init__(self, channels: Sequence[int], classes: int = len(SHAPES)) -> None:
        super().__init__()
        sizes = list(pairwise((1, *channels)))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(*size, 3, 1 + (place > 0), 1, bias=False), nn.BatchNorm2d(size[1]), nn.ReLU())
                for place, size in enumerate(sizes)
            )
        )
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, C) for images (B, 1, H, W)."""
        return self.head(self.blocks(pixel_values).mean((2, 3)))
