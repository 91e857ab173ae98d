"""Which tensors a loss reads of which model: the selectors of one `[[losses]]` table, by the model's name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from hookbrew import words
from hookbrew.config import Loss
from hookbrew.errors import ObjectiveError
from hookbrew.objective.inputs import Names

Selector = str | Sequence[str]
"""One, or a list of them, which gives a list of tensors."""
Selectors = Mapping[str, Selector]
"""By the name of the model: `student`, and a teacher's, which is `teacher` where there is only one."""


def sided(table: Loss, takes: str, teachers: Collection[str], names: Names) -> Selectors:
    """What a table reads: of the student, and of each teacher that it compares with.

    teachers: all there are, none for a loss that compares with none. Where there are several, a loss on logits
    compares with all of them together unless it names some; any other loss names one.

    Raises ObjectiveError for a teacher that is not there, or that has to be named.
    """
    return {
        "student": names.logits if table.student is None else table.student,
        **taught(table, takes, teachers, names),
    }


def taught(table: Loss, takes: str, teachers: Collection[str], names: Names) -> Selectors:
    """The teachers' part."""
    if isinstance(table.teacher, Mapping):
        for name in table.teacher:
            if name not in teachers:
                raise ObjectiveError(f"teacher: there is none called {name!r}; {words.hint(name, teachers)}")
        chosen: Selectors = table.teacher
    else:
        # one selector for the student's logits may be its head for a task; several are those of any such model
        default = "logits" if isinstance(names.logits, str) else names.logits
        chosen = dict.fromkeys(teachers, default if table.teacher is None else table.teacher)
    if teachers and not chosen:
        raise ObjectiveError("teacher: the table is empty; name a teacher and what is read of it")
    if takes != "logits" and len(chosen) > 1:
        example = f'teacher = {{ {next(iter(chosen))} = "..." }}'
        raise ObjectiveError(
            f"loss {table.type!r} compares with one teacher, and there are {words.several(chosen)}; name it: {example}"
        )
    return chosen
