"""Fourteen bugs of published distillation code, and some more: check_loss catches each, and passes the plain loss."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import attrs
import pytest
import torch
import torch.nn.functional as F

from hookbrew.plugin import options, positive
from hookbrew.testing import check_loss

PASSES = {
    "scalar_and_finite",
    "student_gradient",
    "teacher_detached",
    "zero_at_agreement",
    "flat_at_agreement",
    "mean_over_batch",
    "micro_batches",
    "order_irrelevant",
    "deterministic",
    "inputs_untouched",
    "extreme_values",
    "bfloat16",
    "gradcheck",
    "temperature_scale",
    "impossible_class",
    "tokens_as_samples",
    "full_mask",
    "masked_out",
    "mean_over_valid",
    "empty_mask",
    "any_strides",
}


@options
class Mutant:
    """T^2 KL(p || q) or a bug of it."""

    takes: ClassVar[str] = "logits"

    temperature: float = positive(4.0)
    function: object = attrs.field()

    def build(self):
        return partial(self.function, temperature=self.temperature)


def prepared(student, teacher, mask):
    """float32 or wider, teacher detached, zeros where the mask is False."""
    student, teacher = (x.float() if x.dtype == torch.bfloat16 else x for x in (student, teacher.detach()))
    if mask is not None:
        student, teacher = (x.masked_fill(~mask.unsqueeze(-1), 0.0) for x in (student, teacher))
    return student, teacher


def mean(rows, mask):
    """The mean over what is valid."""
    return rows.mean() if mask is None else (rows * mask).sum() / mask.sum().clamp(min=1)


def divergence(log_q, log_p):
    """KL(p || q) of each row."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def reference(student, teacher, mask=None, *, temperature, power=2.0, dim=-1):
    student, teacher = prepared(student, teacher, mask)
    rows = divergence(F.log_softmax(student / temperature, dim), F.log_softmax(teacher / temperature, dim))
    return mean(rows, mask) * temperature**power


def reduction_mean(student, teacher, mask=None, *, temperature):
    return reference(student, teacher, mask, temperature=temperature) / student.shape[-1]


def reduction_sum(student, teacher, mask=None, *, temperature):
    positions = student.shape[:-1].numel() if mask is None else mask.sum()
    return reference(student, teacher, mask, temperature=temperature) * positions


def teacher_attached(student, teacher, mask=None, *, temperature):
    student, _ = prepared(student, teacher, mask)
    rows = divergence(F.log_softmax(student / temperature, -1), F.log_softmax(teacher.float() / temperature, -1))
    return mean(rows, mask) * temperature**2


def softmax_for_log_softmax(student, teacher, mask=None, *, temperature):
    student, teacher = prepared(student, teacher, mask)
    p, q = F.softmax(teacher / temperature, -1), F.softmax(student / temperature, -1)
    return mean(F.kl_div(q, p, reduction="none").sum(-1), mask) * temperature**2


def cross_entropy_for_kl(student, teacher, mask=None, *, temperature):
    student, teacher = prepared(student, teacher, mask)
    rows = -(F.softmax(teacher / temperature, -1) * F.log_softmax(student / temperature, -1)).sum(-1)
    return mean(rows, mask) * temperature**2


def temperature_on_student_only(student, teacher, mask=None, *, temperature):
    student, teacher = prepared(student, teacher, mask)
    return mean(divergence(F.log_softmax(student / temperature, -1), F.log_softmax(teacher, -1)), mask) * temperature**2


def log_of_softmax(student, teacher, mask=None, *, temperature):
    student, teacher = prepared(student, teacher, mask)
    p, q = F.softmax(teacher / temperature, -1), F.softmax(student / temperature, -1)
    return mean((p * (p.log() - q.log())).sum(-1), mask) * temperature**2


def swapped(student, teacher, mask=None, *, temperature):
    return reference(teacher, student, mask, temperature=temperature)


def in_place(student, teacher, mask=None, *, temperature):
    student /= temperature
    teacher /= temperature
    return reference(student, teacher, mask, temperature=1.0) * temperature**2


def per_sample(student, teacher, mask=None, *, temperature):
    student, teacher = prepared(student, teacher, mask)
    rows = divergence(F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1))
    return rows * temperature**2


def hidden_dropout(student, teacher, mask=None, *, temperature):
    return reference(F.dropout(student, 0.1), teacher, mask, temperature=temperature)


def mask_forgotten(student, teacher, mask=None, *, temperature):
    return reference(student, teacher, temperature=temperature)


def mask_multiplied_late(student, teacher, mask=None, *, temperature):
    student, teacher = prepared(student, teacher, None)
    rows = divergence(F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1))
    return mean(rows, mask) * temperature**2


def mask_without_count(student, teacher, mask=None, *, temperature):
    student, teacher = prepared(student, teacher, mask)
    rows = divergence(F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1))
    return rows.mean() * temperature**2


def mean_of_means(student, teacher, mask=None, *, temperature):
    if mask is None or mask.dim() < 2:
        return reference(student, teacher, mask, temperature=temperature)
    sides = zip(student, teacher, mask, strict=True)
    found = [reference(s, t, m, temperature=temperature) for s, t, m in sides if m.any()]
    return sum(found, student.nansum() * 0.0) / max(1, len(found))


def divided_by_nothing(student, teacher, mask=None, *, temperature):
    student, teacher = prepared(student, teacher, mask)
    rows = divergence(F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1))
    return (rows.mean() if mask is None else rows[mask].mean()) * temperature**2


def viewed(student, teacher, mask=None, *, temperature):
    classes = student.shape[-1]
    mask = None if mask is None else mask.reshape(-1)
    return reference(student.view(-1, classes), teacher.view(-1, classes), mask, temperature=temperature)


def bfloat16_softmax(student, teacher, mask=None, *, temperature):
    teacher = teacher.detach()
    if mask is not None:
        student, teacher = (x.masked_fill(~mask.unsqueeze(-1), 0.0) for x in (student, teacher))
    rows = divergence(F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1))
    return mean(rows, mask) * temperature**2


SEEDED = [
    (partial(reference, power=0.0), "temperature_scale"),
    (partial(reference, power=1.0), "temperature_scale"),
    (reduction_mean, "impossible_class"),
    (reduction_sum, "mean_over_batch"),
    (partial(reference, dim=0), "mean_over_batch"),
    (teacher_attached, "teacher_detached"),
    (softmax_for_log_softmax, "flat_at_agreement"),
    (cross_entropy_for_kl, "zero_at_agreement"),
    (temperature_on_student_only, "flat_at_agreement"),
    (log_of_softmax, "extreme_values"),
    (swapped, "student_gradient"),
    (in_place, "inputs_untouched"),
    (per_sample, "scalar_and_finite"),
    (hidden_dropout, "deterministic"),
]
MORE = [
    (partial(reference, dim=1), "tokens_as_samples"),
    (bfloat16_softmax, "bfloat16"),
    (mask_forgotten, "masked_out"),
    (mask_multiplied_late, "masked_out"),
    (mask_without_count, "mean_over_valid"),
    (mean_of_means, "micro_batches"),
    (divided_by_nothing, "empty_mask"),
    (viewed, "any_strides"),
]


def named(value):
    """The name of a mutant."""
    if isinstance(value, partial):
        return "_".join(f"{key}_{setting:g}" for key, setting in value.keywords.items())
    return value if isinstance(value, str) else value.__name__


def test_the_plain_loss_passes_every_property():
    options = Mutant(function=reference)
    assert {check.name for check in check_loss.checks(options)} == PASSES
    check_loss(options)


def test_there_are_fourteen():
    assert len(SEEDED) == 14


@pytest.mark.parametrize(("function", "caught_by"), SEEDED + MORE, ids=named)
def test_each_bug_is_caught(function, caught_by):
    options = Mutant(function=function)
    assert caught_by in check_loss.failures(options)
    with pytest.raises(AssertionError, match=f"(?m)^Mutant fails {caught_by}: "):
        check_loss(options)
