"""A student made out of its teacher: some of its layers, narrower, with another vocabulary, of low rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from hookbrew import words
from hookbrew.errors import SurgeryError
from hookbrew.surgery.choice import decided
from hookbrew.surgery.depth import demand_list, kept
from hookbrew.surgery.rebuild import lists
from hookbrew.taps import unwrap

WIDTHS = ("hidden", "heads", "ffn", "by")
"""The keys of `width`."""


def student(
    teacher: nn.Module,
    *,
    keep: Mapping[str, Sequence[int] | str] | None = None,
    width: Mapping[str, Any] | None = None,
    vocabulary: Any = None,
    rank: Mapping[str, int] | None = None,
    batches: Iterable[Any] | None = None,
) -> nn.Module:
    """A new model made out of the teacher's weights; it shares no tensor with the teacher, which is not touched.

    keep: the layers that stay, by the path of their list: numbers, or a published choice (choice.py), `uniform:3`.
    width: `{"hidden": 256, "heads": 4, "ffn": 1024, "by": "slice"}`, or by "importance". vocabulary: the ids that stay,
    or the old ids of each new one. rank: ranks of linear and embedding layers, by selector. All in this order; none of
    them gives a copy. batches: what `best` and `importance` are measured on, as the teacher is called with them.

    A model of transformers has a configuration that says what was done: it saves and loads as any other. Raises
    SurgeryError for what is not there, or cannot be made, with the reason.
    """
    made = unwrap(teacher)
    measured = None if batches is None else list(batches)
    known = lists(made)
    numbers = {}
    for path, wanted in (keep or {}).items():
        demand_list(made, known, path)
        numbers[path] = decided(made, path, wanted, known[path], measured)
    made = kept(made, numbers)
    if width:
        made = narrowed(made, width, measured)
    if vocabulary is not None:
        from hookbrew.surgery.vocabulary import respelt

        made = respelt(made, vocabulary)
    if rank:
        from hookbrew.surgery.rank import factorised

        made = factorised(made, rank)
    return made


def narrowed(model: nn.Module, width: Mapping[str, Any], batches: Sequence[Any] | None) -> nn.Module:
    """The model with these widths; raises SurgeryError for a width that is none."""
    for name in width:
        if name not in WIDTHS:
            raise SurgeryError(f"width: no {name!r}; {words.hint(name, WIDTHS)}")
    from hookbrew.surgery.width import narrowed as cut

    return cut(model, **width, batches=batches)
