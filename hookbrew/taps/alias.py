"""The aliases `hidden[i]` and `attention[i]`: names that mean the same on every model with a stack of blocks.

hidden[0] goes into the first block and hidden[i] comes out of block i - 1, so that a model of n blocks has
n + 1; for a pre-norm model the last is what comes out of the block, before the final norm. attention[i] is
the attention of block i, the first one where a block has several: probabilities, or the port that is given.
Where there are several stacks, a path in front tells which: `encoder.hidden[-1]`.
"""

from __future__ import annotations

import attrs
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps.attention import ATTENTION
from hookbrew.taps.hook import Point, Read
from hookbrew.taps.layout import Layout, Spot, Stack, prefix
from hookbrew.taps.selector import ALIASES, Selector
from hookbrew.taps.walk import Walk, positions
from hookbrew.words import several


def is_alias(model: nn.Module, selector: Selector) -> bool:
    """Whether a selector is an alias on this model: the name and one index, with no child of that name there."""
    if not selector.path or selector.path[-1].glob not in ALIASES or len(selector.path[-1].indices) != 1:
        return False
    if any(segment.many for segment in selector.path[:-1]):
        return False
    try:
        here = Walk(model, selector).down(selector.path[:-1])
    except SelectorError:
        return False
    return all(selector.path[-1].glob not in module._modules for module in here.values())


def expanded(selector: Selector, layout: Layout) -> list[Read]:
    """What an alias stands for, in order; SelectorError for an index or a port that it does not have."""
    stack = chosen(selector, layout)
    name, index = selector.path[-1].glob, selector.path[-1].indices[0]
    reads = hidden(selector, stack) if name == "hidden" else attention(selector, stack)
    has = f"there are {name}[0..{len(reads) - 1}]"
    return [reads[number] for number in positions(f"selector '{selector}'", has, len(reads), index)]


def chosen(selector: Selector, layout: Layout) -> Stack:
    """The one stack that an alias is about."""
    under = ".".join(step for segment in selector.path[:-1] for step in (segment.glob, *map(str, segment.indices)))
    stacks = [s for s in layout.stacks if not under or f"{s.path}.".startswith(f"{under}.")]
    if len(stacks) == 1:
        return stacks[0]
    text = f"selector '{selector}'"
    if not stacks:
        where = f"'{under}'" if under else layout.model
        raise SelectorError(f"{text}: no stack of equal blocks was found in {where}; name the layers by their paths")
    paths = several((f"'{stack.path}'" for stack in stacks), most=4)
    start = prefix(stacks[0].path, [stack.path for stack in stacks[1:]])
    write = f"{start}.{attrs.evolve(selector, path=selector.path[-1:])}"
    raise SelectorError(f"{text}: there are {len(stacks)} stacks, {paths}; write which: '{write}'")


def hidden(selector: Selector, stack: Stack) -> list[Read]:
    """What goes into the first block and comes out of each."""
    if selector.port != "out" or selector.picks or selector.call is not None:
        raise SelectorError(f"selector '{selector}': hidden[i] is a tensor; it has no port, pick or call")
    spots = [block.spot for block in stack.blocks]
    return [read(spots[0], "in"), *(read(spot, "out") for spot in spots)]


def attention(selector: Selector, stack: Stack) -> list[Read]:
    """The first attention of each block."""
    port = "attn" if selector.port == "out" else selector.port
    if port not in ATTENTION or selector.picks or selector.call is not None:
        ports = f"its ports are {several(ATTENTION)}, without pick or call"
        raise SelectorError(f"selector '{selector}': attention[i] is one attention; {ports}")
    without = [block.spot.path for block in stack.blocks if not block.attentions]
    if without:
        raise SelectorError(f"selector '{selector}': no attention was found in '{without[0]}'")
    return [read(block.attentions[0], port) for block in stack.blocks]


def read(spot: Spot, port: str) -> Read:
    """One tensor of the call of a module."""
    return Read(Point(spot.path, port), spot.call)
