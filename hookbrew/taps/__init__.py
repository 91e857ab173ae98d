"""A module path becomes a tensor: selectors, forward hooks, and the tree of what can be tapped."""

from hookbrew.taps.attention import Dense
from hookbrew.taps.hook import tapped
from hookbrew.taps.layout import Block, Layout, Spot, Stack, discover
from hookbrew.taps.maps import Map
from hookbrew.taps.modules import modules
from hookbrew.taps.parse import parse
from hookbrew.taps.products import wide
from hookbrew.taps.render import as_json, render
from hookbrew.taps.resolve import unwrap
from hookbrew.taps.selector import Selector
from hookbrew.taps.tap import Taps, tap
from hookbrew.taps.tether import gathered, resharded, sharded, synced, tether
from hookbrew.taps.tree import Node, Outline, outline

__all__ = [
    "Block",
    "Dense",
    "Layout",
    "Map",
    "Node",
    "Outline",
    "Selector",
    "Spot",
    "Stack",
    "Taps",
    "as_json",
    "discover",
    "gathered",
    "modules",
    "outline",
    "parse",
    "render",
    "resharded",
    "sharded",
    "synced",
    "tap",
    "tapped",
    "tether",
    "unwrap",
    "wide",
]
