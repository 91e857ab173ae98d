"""The event-driven training loop. `hookbrew.loop.events` draws it."""

from hookbrew.loop.data import Batch, Feed, Given, Loader, Pad, mix, moved
from hookbrew.loop.device import autocast, chosen
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.events import EVENTS, Events
from hookbrew.loop.loop import Loop
from hookbrew.loop.meter import finite
from hookbrew.loop.rate import Rate, rated
from hookbrew.loop.save import save
from hookbrew.loop.state import State

__all__ = [
    "EVENTS",
    "Batch",
    "Dispatch",
    "Events",
    "Feed",
    "Given",
    "Loader",
    "Loop",
    "Pad",
    "Rate",
    "State",
    "autocast",
    "chosen",
    "finite",
    "mix",
    "moved",
    "rated",
    "save",
]
