"""The tree of a configured model: what can be tapped, measured on its own data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hookbrew import factory
from hookbrew.config import read
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import chosen, moved
from hookbrew.modes import evaluating, kept_random
from hookbrew.objective import accepted
from hookbrew.plugin import Catalogue
from hookbrew.run import feed, model, placed, resolved
from hookbrew.taps import Outline, outline


def outlined(path: str | Path, sets: Sequence[str], side: str, *, catalogue: Catalogue) -> Outline:
    """Pass the first training batch through the student or the teacher of a configuration.

    Raises ConfigError when the file is wrong, or has no such model; DataError when the batch does not fit.
    """
    document = read(path, sets)
    with placed(document):
        config = resolved(document, catalogue)
        if getattr(config, side) is None:
            raise ConfigError([Problem(side, f"there is no [{side}] table in this file")])
        device = chosen(config.train.device)
        with kept_random(device), factory.importing(config.pythonpath):
            batch = next(iter(feed(config, "train").epoch(1)))
            built = model(config, side).to(device)
            inputs = {key: batch[key] for key in accepted(built, batch, config.data.labels)}
            with evaluating(built):
                return outline(built, lambda: built(**moved(inputs, device)))
