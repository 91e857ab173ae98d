"""Every loss of TextBrewer against ours with the options of parity: values and gradients, random shapes and masks."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbrewer.distiller_utils import probability_shift_, select_logits_with_mask
from textbrewer.presets import KD_LOSS_MAP, MATCH_LOSS_MAP, TEMPERATURE_SCHEDULER

import hookbrew_plugins
from hookbrew.plugin import catalogue

PACK = catalogue(discover=False, plugins=[hookbrew_plugins])
FIXED = settings(derandomize=True, deadline=None, max_examples=60)
MATCHES = {
    "hidden_mse": "hidden",
    "cos": "hidden",
    "pkd": "hidden",
    "attention_mse": "attention",
    "attention_mse_sum": "attention",
    "attention_ce": "attention",
    "attention_ce_mean": "attention",
    "fsp": "flow",
    "nst": "flow",
}
SHORT = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Short floats, and the largest relative error of a rounding."""
SMALL = 0.01
PADDED = -10_000.0
"""What a score of padding is in the models that TextBrewer's attention losses were written for."""
DYNAMIC = {
    None: lambda student, teacher, base: base,
    "flsw": TEMPERATURE_SCHEDULER[["flsw", 0.5, 2]],
    "cwsm": TEMPERATURE_SCHEDULER[["cwsm", 0.5]],
}


@st.composite
def problems(draw):
    """Sizes B, H, L, D, a generator of numbers, their size, and a mask (B, L) that leaves each first token, or None."""
    batch, heads, length, width = (draw(st.integers(low, high)) for low, high in ((1, 4), (1, 3), (1, 6), (2, 9)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(batch, length, generator=generator) < 0.6
        mask[:, 0] = True
    return (batch, heads, length, width), generator, draw(st.sampled_from([0.5, 1.0, 8.0])), mask


def drawn(problem, *shape):
    """Numbers that keep away from 0: there the epsilons of the two would differ."""
    _, generator, scale, _ = problem
    sizes = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return sizes * signs * scale


def pair(kind, problem):
    """Student and teacher in float64."""
    (batch, heads, length, width), _, _, mask = problem
    if kind == "flow":
        return [[drawn(problem, batch, length, width) for _ in range(2)] for _ in range(2)]
    if kind == "hidden":
        return [drawn(problem, batch, length, width) for _ in range(2)]
    sides = [drawn(problem, batch, heads, length, length) for _ in range(2)]
    if mask is None:  # then TextBrewer takes what is negative for padding
        return [side.abs() for side in sides]
    return [side.masked_fill(~mask[:, None, None, :], PADDED) for side in sides]


def cast(side, dtype):
    return [tensor.to(dtype) for tensor in side] if isinstance(side, list) else side.to(dtype)


def solved(function, student, *rest):
    """The value, and the gradient of the student."""
    leaves = [t.clone().requires_grad_() for t in (student if isinstance(student, list) else [student])]
    value = function(leaves if isinstance(student, list) else leaves[0], *rest)
    return value.detach().double(), torch.cat([g.double().flatten() for g in torch.autograd.grad(value, leaves)])


def of_textbrewer(name, mask):
    """A match loss as its distiller calls it; nst as git 2c105fa has it, by D and not by L where there is a mask."""
    found = partial(MATCH_LOSS_MAP[name], mask=None if mask is None else mask.long())
    if name != "nst" or mask is None:
        return found
    return lambda student, teacher: found(student, teacher) * (mask.shape[1] / student[0].shape[-1]) ** 2


def of_hookbrew(name, mask, labels=None, **options):
    """A loss as the objective calls it."""
    function = PACK.load("losses", name)(**options).build()
    given = {"mask": mask} if labels is None else {"mask": mask, "labels": labels}
    return lambda student, teacher: function(student=student, teacher=teacher, **given)


def apart(ours, theirs):
    """How far values and gradients are apart, relative to the largest entry, or to SMALL if that is smaller."""
    sizes = [other.abs().max().clamp(min=SMALL) for other in theirs]
    return [((a - b).abs().max() / size).item() for a, b, size in zip(ours, theirs, sizes, strict=True)]


@pytest.mark.parametrize("name", MATCHES)
@given(problem=problems())
@FIXED
def test_match_losses_in_float64(name, problem):
    student, teacher = pair(MATCHES[name], problem)
    ours = solved(of_hookbrew(name, problem[-1]), student, teacher)
    assert max(apart(ours, solved(of_textbrewer(name, problem[-1]), student, teacher))) <= 1e-10


@pytest.mark.parametrize("name", MATCHES)
@given(problem=problems())
@FIXED
def test_match_losses_in_float32(name, problem):
    student, teacher = (cast(side, torch.float32) for side in pair(MATCHES[name], problem))
    ours = solved(of_hookbrew(name, problem[-1]), student, teacher)
    value, gradient = apart(ours, solved(of_textbrewer(name, problem[-1]), student, teacher))
    assert value <= 1e-6
    assert gradient <= 1e-5  # of a difference of two nearly equal numbers


@pytest.mark.parametrize("name", MATCHES)
@pytest.mark.parametrize("dtype", SHORT)
@given(problem=problems())
@FIXED
def test_match_losses_of_short_floats_are_those_of_float64(name, dtype, problem):
    """On the rounded inputs ours has the digits of float32, and a gradient with the one rounding that its type asks."""
    student, teacher = (cast(side, dtype) for side in pair(MATCHES[name], problem))
    ours = solved(of_hookbrew(name, problem[-1]), student, teacher)
    exact = solved(of_textbrewer(name, problem[-1]), *(cast(side, torch.float64) for side in (student, teacher)))
    value, gradient = apart(ours, exact)
    assert value <= 1e-6
    assert gradient <= SHORT[dtype]


def logits_of_textbrewer(student, teacher, case, mask, labels):
    """As in `compute_loss` of its distillers: select, shift, choose a temperature, compare."""
    if mask is not None:
        (student,), (teacher,) = (select_logits_with_mask([side], [mask.long()]) for side in (student, teacher))
    if case["probability_shift"]:
        teacher = probability_shift_(teacher.clone(), labels)
    temperature = DYNAMIC[case["dynamic"]](student, teacher, case["temperature"])
    return KD_LOSS_MAP[case["kind"]](student, teacher, temperature)


@st.composite
def cases(draw):
    """Student, teacher, mask, labels and options. With a mask TextBrewer can shift no teacher."""
    problem = draw(problems())
    (batch, _, length, classes), generator, _, mask = problem
    pooled = mask is None and draw(st.booleans())
    shape = (batch,) if pooled else (batch, length)
    labels = torch.randint(0, classes, shape, generator=generator)
    if not pooled:
        labels = labels.masked_fill(torch.rand(shape, generator=generator) < 0.3, -100)
    student, teacher = (drawn(problem, *shape, classes) for _ in range(2))
    options = {
        "kind": draw(st.sampled_from(["ce", "mse"])),
        "temperature": draw(st.sampled_from([8.0, 10.0])),
        "dynamic": draw(st.sampled_from(list(DYNAMIC))),
        "probability_shift": mask is None and draw(st.booleans()),
    }
    return student, teacher, mask, labels, options


def both_logits(case, dtype):
    """Value and gradient here, and of TextBrewer in the same precision and in float64 on the same inputs."""
    student, teacher, mask, labels, options = case
    student, teacher = student.to(dtype), teacher.to(dtype)
    named = {key: value for key, value in options.items() if key != "kind"}
    if options["dynamic"]:
        named["beta"] = 0.5
    shifting = labels if options["probability_shift"] else None
    ours = of_hookbrew(f"kd_{options['kind']}", mask, shifting, t_squared=False, **named)
    theirs = partial(logits_of_textbrewer, case=options, mask=mask, labels=labels)
    exact = solved(theirs, student.double(), teacher.double())
    return solved(ours, student, teacher), solved(theirs, student, teacher), exact


@given(case=cases())
@FIXED
def test_logit_losses_in_float64(case):
    ours, theirs, _ = both_logits(case, torch.float64)
    assert max(apart(ours, theirs)) <= 1e-10


@given(case=cases())
@FIXED
def test_logit_losses_in_float32(case):
    ours, theirs, _ = both_logits(case, torch.float32)
    value, gradient = apart(ours, theirs)
    assert value <= 1e-6
    assert gradient <= 1e-5


@pytest.mark.parametrize("dtype", SHORT)
@given(case=cases())
@FIXED
def test_logit_losses_of_short_floats_are_those_of_float64(dtype, case):
    ours, _, exact = both_logits(case, dtype)
    value, gradient = apart(ours, exact)
    assert value <= 1e-6
    assert gradient <= SHORT[dtype]
