"""A module path becomes a tensor: selectors, forward hooks, and the tree of what can be tapped."""

from hookbrew.taps.parse import parse
from hookbrew.taps.render import as_json, render
from hookbrew.taps.resolve import unwrap
from hookbrew.taps.selector import Selector
from hookbrew.taps.tap import Taps, tap
from hookbrew.taps.tree import Node, Outline, outline

__all__ = ["Node", "Outline", "Selector", "Taps", "as_json", "outline", "parse", "render", "tap", "unwrap"]
