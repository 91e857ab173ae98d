"""What can be tapped in a model: the models of a configuration on their own data, or one of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from hookbrew import factory, hub
from hookbrew.config import read
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import chosen, moved
from hookbrew.modes import evaluating, kept_random
from hookbrew.objective import accepted
from hookbrew.plugin import Catalogue
from hookbrew.run import feed, model, placed, resolved
from hookbrew.taps import Outline, outline


def outlined(source: str, sets: Sequence[str], sides: Sequence[str], *, catalogue: Catalogue) -> list[Outline]:
    """The outlines of `student` or `teacher` or both; of a folder or a name of transformers it is the one model.

    Raises HookbrewError as `configured` and `hub.looked` do.
    """
    if is_file(source):
        return configured(source, sets, sides, catalogue=catalogue)
    return [hub.looked(source, outline)]


def built(source: str, sets: Sequence[str], sides: Sequence[str], *, catalogue: Catalogue) -> list[nn.Module]:
    """The models themselves, to be counted: of a configuration those of the sides that it has, in that order.

    A folder or a name of transformers gives one, without memory for its weights.
    """
    if not is_file(source):
        return [hub.bare(source)]
    document = read(source, sets)
    with placed(document):
        config = resolved(document, catalogue)
        with kept_random(), factory.importing(config.pythonpath):
            there = [side for side in sides if getattr(config, side) is not None]
            if not there:
                raise ConfigError([Problem(sides[0], f"there is no [{sides[0]}] table in this file")])
            return [model(config, side) for side in there]


def is_file(source: str) -> bool:
    """Whether a name means a configuration: a file, or what was meant to be one."""
    return source.endswith(".toml") or Path(source).is_file()


def configured(path: str, sets: Sequence[str], sides: Sequence[str], *, catalogue: Catalogue) -> list[Outline]:
    """Pass the first training batch through models of a configuration.

    Raises ConfigError when the file is wrong, or has no such model; DataError when the batch does not fit.
    """
    document = read(path, sets)
    with placed(document):
        config = resolved(document, catalogue)
        for side in sides:
            if getattr(config, side) is None:
                raise ConfigError([Problem(side, f"there is no [{side}] table in this file")])
        device = chosen(config.train.device)
        with kept_random(device), factory.importing(config.pythonpath):
            batch = next(iter(feed(config, "train").epoch(1)))

            def drawn(built: nn.Module) -> Outline:
                inputs = {key: batch[key] for key in accepted(built, batch, config.data.labels)}
                with evaluating(built):
                    return outline(built, lambda: built(**moved(inputs, device)))

            return [drawn(model(config, side).to(device)) for side in sides]
