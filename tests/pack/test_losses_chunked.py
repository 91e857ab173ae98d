"""Losses in chunks of rows: the dense losses in value and every gradient, and never the logits of all positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hookbrew.errors import ObjectiveError
from hookbrew.objective import Side
from hookbrew_plugins.losses import ce, jsd, kd_ce, kl, rkl, skl, srkl
from hookbrew_plugins.losses import chunked as module
from hookbrew_plugins.losses.chunked import chunked, evened
from hookbrew_plugins.losses.walk import Term

DENSE = {"kd_ce": kd_ce, "kl": kl, "rkl": rkl, "jsd": jsd, "skl": skl, "srkl": srkl}
SHARE = {"jsd": "beta", "skl": "skew", "srkl": "skew"}
CLOSE = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 1e-6, "atol": 1e-6}}
SINGLE = [Term(name, temperature=2.0) for name in DENSE] + [Term("ce")]
SINGLE += [Term("jsd", share=share) for share in (0.0, 0.3, 1.0)] + [Term("skl", share=0.0), Term("srkl", share=0.0)]
SEVERAL = [Term("kl", 0.5, temperature=4.0), Term("ce", 0.3), Term("rkl", 0.2, t_squared=False, temperature=3.0)]
TERMS = pytest.mark.parametrize("terms", [[term] for term in SINGLE] + [SEVERAL, SEVERAL[::-1]], ids=str)
ALL = pytest.mark.parametrize("terms", [[Term(name)] for name in [*DENSE, "ce"]], ids=lambda terms: terms[0].loss)


def sides(*shape, classes=11, dtype=torch.float64, bias=True, seed=0):
    """A student that learns, a teacher of another width, a mask and labels of which some are -100."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=dtype)

    student = [drawn(*shape, 5), drawn(classes, 5), drawn(classes) if bias else None]
    teacher = Side(drawn(*shape, 3), drawn(classes, 3), drawn(classes) if bias else None)
    student = Side(*(None if one is None else one.requires_grad_() for one in student))
    mask = torch.rand(shape, generator=generator) > 0.3
    labels = torch.randint(0, classes, shape, generator=generator)
    return student, teacher, mask, labels.masked_fill(torch.rand(shape, generator=generator) > 0.7, -100)


def logits(side):
    """The whole of them."""
    return nn.functional.linear(*side)


def dense(student, teacher, terms, mask=None, labels=None):
    """The weighted sum of the dense losses, and each."""
    each = []
    for term in terms:
        if term.hard:
            each.append(ce(logits(student), labels, mask))
            continue
        own = {} if term.share is None else {SHARE[term.loss]: term.share}
        common = {"temperature": term.temperature, "t_squared": term.t_squared}
        each.append(DENSE[term.loss](logits(student), logits(teacher), mask, **common, **own))
    return sum(term.weight * value for term, value in zip(terms, each, strict=True)), torch.stack(each).detach()


def slopes(total, side):
    """The gradients of all that learns."""
    return torch.autograd.grad(total, [one for one in side if one is not None and one.requires_grad])


def require_equal(student, teacher, terms, *, rows=4, **given):
    """The same values and gradients as the dense losses."""
    close = CLOSE[student.hidden.dtype]
    expected, parts = dense(student, teacher, terms, **given)
    found, values = chunked(student, teacher, terms, rows=rows, **given)
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(values, parts, **close)
    assert not values.requires_grad
    torch.testing.assert_close(slopes(found, student), slopes(expected, student), **close)


@TERMS
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_dense_loss(terms, dtype, masked):
    student, teacher, mask, labels = sides(3, 5, dtype=dtype)
    require_equal(student, teacher, terms, mask=mask if masked else None, labels=labels)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    terms=st.lists(st.sampled_from(SINGLE), min_size=1, max_size=3),
    rows=st.integers(1, 20),
    shape=st.sampled_from([(1,), (7,), (2, 1), (3, 4), (2, 2, 3)]),
    bias=st.booleans(),
)
def test_whatever_the_chunks_and_the_sum(seed, terms, rows, shape, bias):
    student, teacher, mask, labels = sides(*shape, bias=bias, seed=seed)
    require_equal(student, teacher, terms, mask=mask, labels=labels, rows=rows)
    require_equal(student, teacher, terms, labels=labels.abs() % 11, rows=rows)


@TERMS
def test_gradcheck(terms):
    student, teacher, mask, labels = sides(2, 3, classes=6)
    labels = torch.where(labels == -100, labels, labels % 6)

    def total(*given):
        return chunked(Side(*given), teacher, terms, mask=mask, labels=labels, rows=2).total

    assert torch.autograd.gradcheck(total, tuple(student))


def test_shifted_causal_labels():
    student, teacher, mask, labels = sides(3, 6)
    views = [one._replace(hidden=one.hidden[:, :-1]) for one in (student, teacher)]
    given = {"mask": mask[:, 1:], "labels": labels[:, 1:]}
    found = chunked(*views, SEVERAL, **given, rows=3).total
    expected = dense(*views, SEVERAL, **given)[0]
    torch.testing.assert_close(slopes(found, student), slopes(expected, student), **CLOSE[torch.float64])
    assert not slopes(chunked(*views, SEVERAL, **given).total, student)[0][:, -1].any()


def test_a_temperature_for_each_position():
    student, teacher, mask, _ = sides(3, 5)
    heat = torch.rand(3, 5, dtype=torch.float64) * 4 + 0.5
    require_equal(student, teacher, [Term("kl", temperature=heat), Term("jsd", temperature=heat)], mask=mask)
    require_equal(student, teacher, [Term("rkl", temperature=heat, t_squared=False)])


def test_a_head_tied_to_the_embedding():
    _, teacher, _, labels = sides(2, 4)
    embed = nn.Embedding(11, 5, dtype=torch.float64)
    ids = torch.randint(0, 11, (2, 4))
    found, expected = (
        torch.autograd.grad(
            loss(Side(embed(ids).tanh(), embed.weight), teacher, SEVERAL, labels=labels)[0], embed.weight
        )
        for loss in (chunked, dense)
    )
    torch.testing.assert_close(found, expected, **CLOSE[torch.float64])


def test_the_gradient_is_scaled_once_for_each_backward():
    student, teacher, mask, labels = sides(3, 5)
    total = chunked(student, teacher, SEVERAL, mask=mask, labels=labels).total
    expected = slopes(dense(student, teacher, SEVERAL, mask, labels)[0], student)
    (2.0 * total).backward(retain_graph=True)
    first = [one.grad.clone() for one in student]
    (-3.0 * total).backward()
    for one, before, plain in zip(student, first, expected, strict=True):
        torch.testing.assert_close(before, 2.0 * plain, **CLOSE[torch.float64])
        torch.testing.assert_close(one.grad, -plain, **CLOSE[torch.float64])


@TERMS
def test_without_a_valid_row_it_is_0(terms):
    student, teacher, mask, labels = sides(2, 3)
    nothing = torch.full_like(labels, -100)
    total, values = chunked(student, teacher, terms, mask=torch.zeros_like(mask), labels=nothing)
    assert total.item() == 0
    assert not values.any()
    assert not any(one.any() for one in slopes(total, student))


def test_labels_without_one_count_in_no_gradient():
    student, _, _, labels = sides(2, 3)
    total = chunked(student, None, [Term("ce")], labels=torch.full_like(labels, -100)).total
    assert not any(one.any() for one in slopes(total, student))


@ALL
def test_what_is_masked_may_be_anything(terms):
    student, teacher, mask, labels = sides(3, 5)
    with torch.no_grad():
        student.hidden[~mask], teacher.hidden[~mask] = torch.nan, torch.inf
    total = chunked(student, teacher, terms, mask=mask, labels=labels, rows=4).total
    made = slopes(total, student)
    assert total.isfinite()
    assert all(one.isfinite().all() for one in made)
    assert not made[0][~mask].any()


@pytest.mark.parametrize("name", [*DENSE, "ce"])
def test_a_class_that_both_rule_out(name):
    student, teacher, _, labels = sides(3, 5)
    with torch.no_grad():
        student.bias[2] = teacher.bias[2] = -torch.inf
    require_equal(student, teacher, [Term(name)], labels=torch.where(labels == 2, 3, labels))


@pytest.mark.parametrize("name", ["kd_ce", "kl", "jsd", "skl", "srkl"])
def test_a_class_that_the_teacher_rules_out(name):
    student, teacher, _, _ = sides(3, 5)
    with torch.no_grad():
        teacher.bias[2] = -torch.inf
    require_equal(student, teacher, [Term(name)])


@pytest.mark.parametrize("name", ["rkl", "jsd", "skl", "srkl"])
def test_a_class_that_the_student_rules_out(name):
    student, teacher, _, _ = sides(3, 5)
    with torch.no_grad():
        student.bias[2] = -torch.inf
    require_equal(student, teacher, [Term(name)])


def test_far_apart_in_float32():
    student, teacher, _, labels = sides(3, 5, dtype=torch.float32)
    with torch.no_grad():
        student.hidden.mul_(100)
        teacher.hidden.mul_(100)
    for name in ("jsd", "skl", "srkl", "kl", "ce"):
        found, expected = (f(student, teacher, [Term(name)], labels=labels)[0] for f in (chunked, dense))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(slopes(found, student), slopes(expected, student), rtol=1e-5, atol=1e-4)


@ALL
def test_under_autocast(terms):
    student, teacher, mask, labels = sides(3, 50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = student._replace(hidden=student.hidden.bfloat16())
        found, expected = (f(low, teacher, terms, mask=mask, labels=labels)[0] for f in (chunked, dense))
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the logits are rounded to the same bfloat16
    made = slopes(found, student)
    assert [one.dtype for one in made] == [torch.float32] * 3
    torch.testing.assert_close(made, slopes(expected, student), rtol=2e-2, atol=1e-3)


def test_weights_in_bfloat16():
    """The gradient of a head grows over chunks in float32: in bfloat16 small parts would be lost in the sum."""
    student, teacher, _, _ = sides(8, 64, dtype=torch.float32)
    halves = [Side(*(one.detach().bfloat16() for one in side)) for side in (student, teacher)]
    low, wide = (Side(*(one.detach().to(kind).requires_grad_() for one in halves[0])) for kind in (None, torch.float32))
    found = slopes(chunked(low, halves[1], [Term("kl")], rows=1).total, low)
    whole = Side(*(one.float() for one in halves[1]))
    expected = slopes(chunked(wide, whole, [Term("kl")]).total, wide)
    assert {one.dtype for one in found} == {torch.bfloat16}
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).norm() < 0.006 * other.norm()  # 0.003, and in bfloat16 0.02


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_float16_keeps_what_a_scaler_saves(kind):
    """What is too small for float16 until the backward multiplies it, with weights in float16 or under autocast."""
    student, teacher, _, labels = sides(3, 50, dtype=torch.float32)
    half, other = (Side(*(one.detach().half() for one in side)) for side in (student, teacher))
    half = Side(*(one.to(kind).requires_grad_() for one in half))._replace(hidden=half.hidden.requires_grad_())
    terms = [Term("kl", weight=2.0**-24), Term("ce", weight=2.0**-24)]
    with torch.autocast("cpu", dtype=torch.float16, enabled=kind == torch.float32):
        found, expected = (f(half, other, terms, labels=labels)[0] for f in (chunked, dense))
    found, expected = (slopes(one * 2.0**24, half) for one in (found, expected))
    assert [one.dtype for one in found] == [one.dtype for one in half]
    for one, two in zip(found, expected, strict=True):
        assert (one.float() - two.float()).norm() < 0.002 * two.float().norm()


def test_the_teacher_gets_no_gradient():
    student, teacher, _, _ = sides(3, 5)
    teacher = Side(*(one.requires_grad_() for one in teacher))
    chunked(student, teacher, [Term("kl")]).total.backward()
    assert [one.grad for one in teacher] == [None] * 3


class Births(TorchDispatchMode):
    """The names of operations, and the most numbers that a tensor had that one of them gave."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        for one in output if isinstance(output, tuple | list) else (output,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.untyped_storage().nbytes() // one.element_size())
        return output


def test_what_is_frozen_makes_no_work():
    def products(**frozen):
        student, teacher, _, _ = sides(3, 5)
        student = student._replace(**{name: getattr(student, name).detach() for name in frozen})
        with Births() as seen:
            total = chunked(student, teacher, [Term("kl")]).total
        expected = dense(student, teacher, [Term("kl")])[0]
        if expected.requires_grad:
            torch.testing.assert_close(slopes(total, student), slopes(expected, student), **CLOSE[torch.float64])
        assert total.requires_grad == expected.requires_grad
        return sum(name in ("mm", "addmm", "addmm_") for name in seen.names), seen.names.count("exp_")

    assert products() == (4, 1)
    assert products(hidden=True) == products(weight=True) == (3, 1)
    assert products(hidden=True, weight=True) == (2, 1)
    assert products(hidden=True, weight=True, bias=True) == (2, 0)


def test_an_evaluation_makes_no_gradient():
    student, teacher, _, labels = sides(3, 5)
    with torch.no_grad(), Births() as seen:
        total, values = chunked(student, teacher, SEVERAL, labels=labels)
    assert not total.requires_grad
    assert "addmm_" not in seen.names
    torch.testing.assert_close(values, dense(student, teacher, SEVERAL, labels=labels)[1])


@pytest.mark.parametrize("terms", [[Term("kl")], SEVERAL, [Term("jsd")], [Term("ce")]], ids=str)
def test_the_logits_of_all_positions_are_never_there(terms, monkeypatch):
    positions, classes = 96, 500
    monkeypatch.setattr(module, "BUFFER", 8 * classes * 8)  # 8 rows of float64
    student, teacher, mask, labels = sides(2, positions // 2, classes=classes)
    with Births() as seen:
        total = chunked(student, teacher, terms, mask=mask, labels=labels).total
        total.backward()
    assert seen.largest <= 8 * classes
    with Births() as seen:
        dense(student, teacher, terms, mask, labels)[0].backward()
    assert seen.largest >= positions * classes


def test_buffers_are_asked_for_once(monkeypatch):
    student, teacher, _, labels = sides(4, 16, classes=500)
    for terms, most in (
        ([Term("ce")], 2),
        ([Term("kl")], 3),
        ([Term("rkl")], 3),
        ([Term("jsd")], 4),
        ([Term("skl")], 4),
    ):
        with Births() as seen:
            chunked(student, teacher, terms, labels=labels.abs(), rows=4)
        assert seen.names.count("empty") <= most


def test_what_is_masked_is_not_multiplied():
    student, teacher, mask, _ = sides(4, 16)
    with Births() as seen:
        chunked(student, teacher, [Term("kl")], mask=mask, rows=1)
    assert seen.names.count("addmm") == 2 * int(mask.sum())


@given(number=st.integers(0, 5000), most=st.integers(1, 300))
def test_chunks_are_even(number, most):
    size = evened(number, most)
    assert 1 <= size <= most
    assert -(-number // size) == -(-number // most)


def test_a_second_derivative_is_refused():
    student, teacher, _, _ = sides(2, 3)
    total = chunked(student, teacher, [Term("kl")]).total
    (first,) = torch.autograd.grad(total, student.hidden, create_graph=True)
    with pytest.raises(ObjectiveError, match="a chunked loss has no second derivatives; take the dense loss"):
        first.square().sum().backward()


def test_mistakes():
    student, teacher, mask, labels = sides(2, 3)
    for message, call in {
        "no chunked loss 'klx'; did you mean 'kl'?": lambda: Term("klx"),
        "chunked loss 'kl' has no share; jsd, skl, srkl have one": lambda: Term("kl", share=0.5),
        "share of 'skl' is 1; expected 0 to 1, with 1 for 'jsd' only": lambda: Term("skl", share=1),
        "temperature is 0; expected a number above 0": lambda: Term("kl", temperature=0),
        "chunked loss 'ce' has no temperature": lambda: Term("ce", temperature=2.0),
        "a temperature that learns needs the dense loss: the chunked one gives it no gradient": lambda: Term(
            "kl", temperature=torch.ones(2, 3, requires_grad=True)
        ),
        "temperature is (3,); expected (2, 3), one for each position": lambda: chunked(
            student, teacher, [Term("kl", temperature=torch.ones(3))]
        ),
        "a chunked loss has no terms; expected one or more": lambda: chunked(student, teacher, []),
        "chunked loss 'kl' needs a teacher; there is none": lambda: chunked(student, None, [Term("kl")]),
        "chunked loss 'ce' needs labels; there are none": lambda: chunked(student, teacher, [Term("ce")]),
        "a chunk has 0 rows; expected 1 or more": lambda: chunked(student, teacher, [Term("kl")], rows=0),
        "labels are torch.int64, (3,); expected torch.long, (2, 3), the student's hidden states (2, 3, 5) without "
        "their features": lambda: chunked(student, teacher, [Term("ce")], labels=labels[0]),
        "positions differ: student (2, 3), teacher (3,)": lambda: chunked(
            student, teacher._replace(hidden=teacher.hidden[0]), [Term("kl")]
        ),
        "numbers of classes differ: student 11, teacher 10": lambda: chunked(
            student, Side(teacher.hidden, teacher.weight[:10]), [Term("kl")]
        ),
        "student's head is (11, 3); expected (classes, 5), as its hidden states have 5 features": lambda: chunked(
            student._replace(weight=teacher.weight), teacher, [Term("kl")]
        ),
        "teacher's bias is (5,); expected (11,)": lambda: chunked(
            student, teacher._replace(bias=teacher.bias[:5]), [Term("kl")]
        ),
        "student's hidden states are torch.float32, its head is torch.float64; expected one type without autocast": (
            lambda: chunked(student._replace(hidden=student.hidden.float()), teacher, [Term("kl")])
        ),
        "student's hidden states are (5,); expected (batch, ..., features)": lambda: chunked(
            student._replace(hidden=student.hidden[0, 0]), teacher, [Term("kl")]
        ),
    }.items():
        with pytest.raises(ObjectiveError) as found:
            call()
        assert str(found.value) == message
    with pytest.raises(ObjectiveError, match=r"expected torch\.bool"):
        chunked(student, teacher, [Term("kl")], mask=mask.long())
