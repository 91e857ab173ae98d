"""The event-driven training loop. `hookbrew.loop.events` draws it."""

from hookbrew.loop.batch import SHARE, Batch, Pad, digest, moved, size_of, split
from hookbrew.loop.data import Feed, Given, Loader
from hookbrew.loop.device import autocast, chosen
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.even import require_even, require_same
from hookbrew.loop.events import EVENTS, Events
from hookbrew.loop.loop import Loop
from hookbrew.loop.meter import finite
from hookbrew.loop.mixture import Chain, Mixture
from hookbrew.loop.order import mix
from hookbrew.loop.rate import Rate, rated
from hookbrew.loop.save import save
from hookbrew.loop.shards import spread
from hookbrew.loop.state import State
from hookbrew.store import Store

__all__ = [
    "EVENTS",
    "SHARE",
    "Batch",
    "Chain",
    "Dispatch",
    "Events",
    "Feed",
    "Given",
    "Loader",
    "Loop",
    "Mixture",
    "Pad",
    "Rate",
    "State",
    "Store",
    "autocast",
    "chosen",
    "digest",
    "finite",
    "mix",
    "moved",
    "rated",
    "require_even",
    "require_same",
    "save",
    "size_of",
    "split",
    "spread",
]
