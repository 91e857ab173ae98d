"""The page of a comparison: one HTML file that needs nothing else, with the table, plots and maps of similarity."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from hookbrew.compare.plots import plotted
from hookbrew.compare.result import Comparison
from hookbrew.compare.table import lines, markdown, under
from hookbrew.drawing import Side, similarity
from hookbrew.errors import HookbrewError
from hookbrew.report import files, head, pictures
from hookbrew.report.plot import COLOURS, MOST, PATTERNS, require


def page(found: Comparison) -> str:
    """The HTML; raises HookbrewError where what it is made with is missing, or for too many models."""
    require()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    if len(found.models) > MOST:
        raise HookbrewError(f"a page shows up to {MOST} models, whose lines can be told apart; got {len(found.models)}")
    engine = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(head.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return engine.get_template("comparison.html").render(
        mark=files.MARK,
        version=version("hookbrew"),
        made=head.clock(datetime.now(UTC)),
        models=found.models,
        lines=lines(found),
        under=under(found),
        drawings=[(drawing, Markup(drawing.svg)) for drawing in plotted(found)],
        maps=list(maps(found)),
        pasted=markdown(found),
        line=lambda place: {"colour": f"var(--c{place % COLOURS})", "pattern": PATTERNS[place % len(PATTERNS)]},
    )


def maps(found: Comparison) -> Iterator[pictures.Image]:
    """A map of similarity for each model but the first."""
    first = found.models[0].name
    for one in found.models:
        if one.similarity is not None:
            sides = Side(one.name, one.similarity.paths), Side(first, one.similarity.first)
            title = f"Layers of {one.name} and {first}"
            picture = similarity(*sides, torch.tensor(one.similarity.values), title=title, over=one.similarity.over)
            yield pictures.image(title, picture.png)
