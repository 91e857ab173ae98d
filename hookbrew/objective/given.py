"""What a loss is given: its tensors, aligned, with the teachers merged into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor

from hookbrew import words
from hookbrew.config import Merge
from hookbrew.errors import DataError
from hookbrew.objective.align import IGNORED, Seen, labels_key, logits_of
from hookbrew.objective.inputs import Names
from hookbrew.objective.merge import merged
from hookbrew.objective.source import Source
from hookbrew.objective.term import Term, listed


@attrs.frozen
class Given:
    """How the roles of terms are filled."""

    names: Names
    merge: Merge

    def roles(self, term: Term, seen: Seen, student: Any, teachers: Sequence[Any], progress: float) -> dict[str, Any]:
        """What a loss asks for, by role: tensors of one position each; None where there is nothing for one.

        seen: the batch. student, teachers: what was tapped.
        """
        source, scope, own = term.source, term.scope, seen.own
        wanted = source.roles
        valid = seen.valid(source, scope)
        if source.takes == "logits" and (scope.shifted or self.names.classes is not None):
            student = logits_of(student, self.names, own, shifted=scope.shifted)
            teachers = [logits_of(teacher, self.names, own, shifted=scope.shifted) for teacher in teachers]
        found = {"student": student}
        if "teacher" in wanted:
            found["teacher"] = teachers[0] if len(teachers) == 1 else self.one(term, seen, teachers, progress)
        if "mask" in wanted:
            found["mask"] = valid.given(listed(student)[0].device) if source.strict else valid.mask
        if "labels" in wanted:
            found["labels"] = valid.labels
        if "index" in wanted:
            found["index"] = self.index(source, own)
        return found

    def one(self, term: Term, seen: Seen, teachers: Sequence[Any], progress: float) -> Any:
        """Several teachers as one."""
        source = term.source
        labels = seen.valid(source, term.scope).labels
        weights = [self.merge.weights.get(name, 1.0) for name in source.teachers]
        temperature = getattr(source.at(progress), "temperature", 1.0)
        if labels is None and self.merge.confidence == "labels":
            labels = seen.own.get(labels_key(source, term.pair, self.names))
            labels = labels[:, 1:] if labels is not None and term.scope.shifted else labels
        return merged(teachers, weights, self.merge, temperature, labels)

    def index(self, source: Source, own: Mapping[str, Any]) -> Tensor:
        """The number of each sample; raises DataError when the batch does not say."""
        key = self.names.index
        if key not in own:
            raise DataError(
                f"loss {source.name!r} remembers samples, and the batch has no key {key!r} with the "
                f"number of each; {words.hint(key, own)}"
            )
        found: Tensor = own[key]
        return found


def aligned(logits: Any, own: Mapping[str, Any], names: Names) -> tuple[Any, Any]:
    """The logits of a prediction and its labels, both as losses compare them; own: the student's part of the batch.

    Lists where there are several. Labels are None where the batch has none; a position that the mask takes out has
    none either. Raises DataError when labels do not fit.
    """
    keys = [names.labels] if isinstance(names.labels, str) else list(names.labels)
    found = logits if isinstance(logits, list) else [logits]
    shifted = [bool(names.causal) and tensor.dim() == 3 for tensor in found]
    made = [logits_of(tensor, names, own, shifted=move) for tensor, move in zip(found, shifted, strict=True)]
    if any(key not in own for key in keys):
        return (made if isinstance(logits, list) else made[0]), None
    if len(keys) != len(made):
        raise DataError(
            f"there are {len(made)} tensors of logits, and {len(keys)} keys of labels: {words.several(keys)}"
        )
    labels = [told(own, key, names, one, shifted=m) for key, one, m in zip(keys, found, shifted, strict=True)]
    return (made, labels) if isinstance(logits, list) else (made[0], labels[0])


def told(own: Mapping[str, Any], key: str, names: Names, logits: Tensor, *, shifted: bool) -> Any:
    """The labels under a key for logits, which are to be shifted or not: none at positions where the mask is 0."""
    labels, mask = own[key], own.get(names.mask)
    if not isinstance(labels, Tensor):
        raise DataError(f"{key!r} holds the labels, and is a {type(labels).__name__}; expected a tensor")
    if logits.dim() != 3 or labels.shape[:2] != logits.shape[:2]:
        if shifted:
            raise DataError(f"labels are {tuple(labels.shape)}; causal = true needs one for each token")
        return labels
    # an encoder's mask and a decoder's labels may have one length by chance
    if mask is not None and mask.shape == logits.shape[:2] and "decoder_input_ids" not in own:
        kept = mask.bool()
        if shifted:
            labels, kept = labels[:, 1:], kept[:, :-1] & kept[:, 1:]
        nothing = 0 if labels.is_floating_point() else IGNORED
        return labels.masked_fill(~(kept if labels.dim() == 2 else kept.unsqueeze(-1)), nothing)
    return labels[:, 1:] if shifted else labels
