"""Modules by their path, for those who want the modules themselves and no tensor of theirs."""

from __future__ import annotations

from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps.alias import is_alias
from hookbrew.taps.parse import parse
from hookbrew.taps.resolve import matched, unwrap
from hookbrew.taps.selector import Selector
from hookbrew.taps.walk import Found


def modules(model: nn.Module, text: str) -> Found:
    """The modules that the path of a selector names, containers too, which no tap could see; at least one.

    SelectorError for a path that matches nothing, with what is near, and for what names a tensor: the model's output,
    an alias, a call, a port.
    """
    inner, selector = unwrap(model), parse(text)
    if not selector.path or selector != Selector(selector.path) or is_alias(inner, selector):
        raise SelectorError(f"selector {text!r} names a tensor; expected the path of modules, like 'encoder.layer'")
    return matched(inner, selector)
