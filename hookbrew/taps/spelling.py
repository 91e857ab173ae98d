"""Selectors ready to paste, from what discovery found: blocks of a stack, their attention, and the aliases."""

from __future__ import annotations

from collections.abc import Sequence

from hookbrew.taps.layout import Stack
from hookbrew.taps.selector import spell
from hookbrew.taps.walk import join


def path(text: str) -> str:
    """A module's path as a selector has to write it."""
    return ".".join(map(spell, text.split(".")))


def blocks(stack: Stack, prefix: str, numbers: Sequence[int]) -> str:
    """The outputs of some blocks, given by rising numbers from 0; one number gives one tensor, more give a list.

    prefix: what tells the stack from the others of its model, for an alias where there is no plain selector.
    """
    if all(block.spot.call is None for block in stack.blocks):
        if stack.path:
            return f"{path(stack.path)}[{contiguous(numbers) or listed(numbers)}]"
        names = ",".join(spell(stack.blocks[number].spot.path) for number in numbers)
        return f"{{{names}}}" if len(numbers) > 1 else names
    calls = regular(numbers)
    if stack.shared and calls:
        return f"{path(stack.path)}#{calls}"
    return f"{join(path(prefix), 'hidden')}[{listed([number + 1 for number in numbers])}]"


def attention(stack: Stack) -> list[str]:
    """Selectors of the first attention of every block: one selector for all of them, or else one for each."""
    spots = [block.attentions[0] for block in stack.blocks]
    inside = {spot.path.removeprefix(block.spot.path) for spot, block in zip(spots, stack.blocks, strict=True)}
    if len(inside) == 1 and all(spot.call is None for spot in spots):
        every = f"{path(stack.path)}[*]" if stack.path else "*"
        return [f"{every}{path(inside.pop())}:attn"]
    if [(spot.path, spot.call) for spot in spots] == [(spots[0].path, call) for call in range(len(spots))]:
        return [f"{path(spots[0].path)}#*:attn"]
    return [f"{path(spot.path)}{'' if spot.call is None else f'#{spot.call}'}:attn" for spot in spots]


def contiguous(numbers: Sequence[int]) -> str:
    """Numbers without a gap as a slice; nothing if there is a gap, or but one number."""
    start, stop = numbers[0], numbers[-1] + 1
    return f"{start}:{stop}" if len(numbers) > 1 and list(numbers) == list(range(start, stop)) else ""


def regular(numbers: Sequence[int]) -> str:
    """Numbers at equal distances as a slice; one as itself; nothing if the distances differ."""
    if len(numbers) == 1:
        return str(numbers[0])
    step = numbers[1] - numbers[0]
    if list(numbers) != list(range(numbers[0], numbers[-1] + 1, step)):
        return ""
    return contiguous(numbers) or f"{numbers[0]}:{numbers[-1] + 1}:{step}"


def listed(numbers: Sequence[int]) -> str:
    """Numbers with commas."""
    return ",".join(map(str, numbers))
