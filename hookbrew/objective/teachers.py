"""Teachers by name, and what is wrong with those that nobody learns from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from hookbrew.config import Merge
from hookbrew.errors import ConfigError, Problem
from hookbrew.objective.inputs import Names
from hookbrew.objective.source import Source
from hookbrew.taps import unwrap

Teachers = nn.Module | Mapping[str, nn.Module] | None
"""None, one, or several by name."""
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How classes of transformers end whose logits are of the next token."""


def called(teacher: Teachers) -> dict[str, nn.Module]:
    """The teachers by name; the only one is called `teacher`. Raises ConfigError for a name that none can have."""
    if teacher is None:
        return {}
    if isinstance(teacher, nn.Module):
        return {"teacher": teacher}
    for name in teacher:
        if name == "student" or "." in name or not name or hasattr(nn.ModuleDict(), name):
            message = "no teacher can be called so: it is the student, has a dot, or is a word of torch's modules"
            raise ConfigError([Problem(f"teachers.{name}", message)])
    return dict(teacher)


def joined(teachers: Mapping[str, nn.Module]) -> nn.Module | None:
    """The only teacher, all of them in one module, or None."""
    return nn.ModuleDict(teachers) if len(teachers) > 1 else next(iter(teachers.values()), None)


def unused(teachers: Collection[str], sources: Sequence[Source], at: str) -> dict[str, Problem]:
    """The teachers that no loss compares with, which are not run, and what is wrong with that."""
    used = {name for source in sources for name in source.teachers}
    message = "no loss compares with it, so nothing would be learned from it"
    alone = list(teachers) == ["teacher"]
    return {
        name: Problem(f"{at}teacher" if alone else f"{at}teachers.{name}", message)
        for name in teachers
        if name not in used
    }


def labelled(sources: Sequence[Source], merge: Merge) -> list[str]:
    """What compares logits with labels, in words."""
    logits = [source for source in sources if source.takes == "logits"]
    reading = [f"loss {source.name!r}" for source in logits if "labels" in source.roles]
    trusting = merge.confidence == "labels"
    return reading + ["the merge of teachers" for source in logits if trusting and len(source.teachers) > 1]


def require_order(student: nn.Module, readers: Sequence[str], names: Names, at: str) -> None:
    """Raise ConfigError for a causal model whose labels would be compared one token off, unless that was said.

    readers: what compares them with its logits, in words.
    """
    name = type(unwrap(student)).__name__
    if names.causal is None and name.endswith(CAUSAL) and readers:
        message = (
            f"{name} predicts the next token, and {readers[0]} reads labels: write causal = true if they are "
            "those of the tokens themselves, or false if they are moved by one already"
        )
        raise ConfigError([Problem(f"{at}data.causal", message)])
