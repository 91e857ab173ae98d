"""Where a loss gives another number than TextBrewer's on purpose: the rows of docs/textbrewer.md, with both numbers."""

import math
from functools import partial

import pytest
import torch
from textbrewer.distiller_utils import probability_shift_, select_logits_with_mask
from textbrewer.presets import KD_LOSS_MAP, MATCH_LOSS_MAP, TEMPERATURE_SCHEDULER

from hookbrew_plugins.losses import (
    attention_ce,
    attention_mse,
    cos,
    fsp,
    hidden_mse,
    kd_ce,
    kd_mse,
    nst,
    pkd,
)
from hookbrew_plugins.losses.teaching import cwsm, flsw, shifted

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def solved(loss, student, teacher):
    """The value and the gradient of the student."""
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    return value.detach().double(), student.grad.double()


def wave(start, *shape):
    """Deterministic inputs: 2 sin(start + 0.37 i^2), i the flat index."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (2 * torch.sin(start + 0.37 * index**2)).reshape(shape)


def pull(loss, temperature):
    """The length of the student's gradient."""
    student = wave(7, 2, 5).requires_grad_()
    loss(student, wave(8, 2, 5), temperature=temperature).backward()
    return student.grad.norm().item()


def test_the_gradient_keeps_its_size_as_the_temperature_grows():
    theirs = [pull(KD_LOSS_MAP["ce"], t) for t in (1.0, 2.0, 4.0, 8.0)]
    ours = [pull(kd_ce, t) for t in (1.0, 2.0, 4.0, 8.0)]
    assert theirs == pytest.approx([0.364195, 0.095398, 0.023371, 0.005792], abs=1e-6)
    assert ours == pytest.approx([0.364195, 0.381592, 0.373942, 0.370697], abs=1e-6)


def test_kd_mse_does_not_depend_on_the_temperature():
    pair = wave(7, 2, 5), wave(8, 2, 5)
    assert [KD_LOSS_MAP["mse"](*pair, t).item() for t in (1.0, 4.0)] == pytest.approx([1.6426104618, 0.1026631539])
    assert [kd_mse(*pair, temperature=t).item() for t in (1.0, 4.0)] == pytest.approx([1.6426104618] * 2)


def test_temperatures_stay_positive():
    logits = torch.zeros(2, 1000)
    logits[1, 0] = 20.0
    pair = logits, logits.roll(1, dims=1)
    assert TEMPERATURE_SCHEDULER[["cwsm", 1]](*pair, 4).tolist() == pytest.approx([-245.50, 253.50], abs=0.01)
    assert cwsm(*pair, temperature=4.0, beta=1.0).tolist() == pytest.approx([0.1, 253.50], abs=0.01)
    opposed = torch.tensor([[1.0, -1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert TEMPERATURE_SCHEDULER[["flsw", 1, 2]](*opposed, 1).tolist() == pytest.approx([3.0, -1.0], abs=1e-3)
    assert flsw(*opposed, temperature=1.0).tolist() == pytest.approx([3.0, 0.1], abs=1e-3)


def test_a_mask_does_not_stop_a_shift():
    logits, labels = wave(7, 2, 3, 4), torch.tensor([[0, 1, 2], [3, 0, -100]])
    (selected,) = select_logits_with_mask([logits], [MASK])
    with pytest.raises(IndexError, match="shape mismatch"):
        probability_shift_(selected, labels)
    ours = shifted(logits, labels, MASK.bool())
    assert torch.equal(ours.argmax(dim=-1)[MASK.bool()], labels[MASK.bool()])
    assert torch.equal(ours[1, 2], logits[1, 2])


def test_a_label_that_is_missing_does_not_stop_a_shift():
    logits, labels = wave(7, 2, 4), torch.tensor([3, -100])
    with pytest.raises(IndexError, match="out of bounds"):
        probability_shift_(logits.clone(), labels)
    assert shifted(logits, labels)[0].argmax() == 3
    assert torch.equal(shifted(logits, labels)[1], logits[1])
    transposed = wave(7, 4, 3, 2).transpose(0, 2)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        probability_shift_(transposed, torch.zeros(2, 3, dtype=torch.long))
    assert shifted(transposed, torch.zeros(2, 3, dtype=torch.long)).argmax(dim=-1).count_nonzero() == 0


def test_a_shift_leaves_the_teacher_as_it_is():
    logits, labels = wave(7, 2, 4), torch.tensor([3, 1])
    shifted(logits, labels)
    assert torch.equal(logits, wave(7, 2, 4))
    probability_shift_(logits, labels)
    assert not torch.equal(logits, wave(7, 2, 4))


def test_no_mask_is_a_mask_of_ones_on_attention():
    pair, ones = (wave(1, 2, 2, 3, 3), wave(2, 2, 2, 3, 3)), torch.ones(2, 3)
    numbers = {"attention_mse": (attention_mse, 0.8475169055), "attention_ce": (attention_ce, 0.8458234626)}
    for name, (loss, expected) in numbers.items():
        theirs = MATCH_LOSS_MAP[name]
        assert theirs(*pair).item() == pytest.approx(expected, abs=5e-11)
        assert loss(*pair).item() == pytest.approx(theirs(*pair, mask=ones).item(), rel=1e-12)
        assert abs(loss(*pair).item() - expected) > 0.1


def test_padding_is_no_part_of_the_softmax_of_attention():
    pair = wave(1, 2, 2, 3, 3), wave(2, 2, 2, 3, 3)
    assert MATCH_LOSS_MAP["attention_ce"](*pair, mask=MASK).item() == pytest.approx(0.8679102176, abs=5e-11)
    padded = [side.masked_fill(~MASK.bool()[:, None, None, :], -10_000.0) for side in pair]
    assert MATCH_LOSS_MAP["attention_ce"](*padded, mask=MASK).item() == pytest.approx(0.7725706753, abs=5e-11)
    assert attention_ce(*pair, MASK.bool()).item() == pytest.approx(0.7725706753, abs=5e-11)


def test_scores_of_minus_infinity_are_left_out():
    absent = ~MASK.bool()[:, None, None, :]
    pair = [wave(s, 2, 2, 3, 3).masked_fill(absent, -torch.inf) for s in (1, 2)]
    padded = [side.masked_fill(absent, -10_000.0) for side in pair]
    for name, loss in {"attention_mse": attention_mse, "attention_ce": attention_ce}.items():
        assert MATCH_LOSS_MAP[name](*pair, mask=MASK).isnan()
        expected = MATCH_LOSS_MAP[name](*padded, mask=MASK).item()
        assert loss(*pair, MASK.bool()).item() == pytest.approx(expected, rel=1e-12)


def test_a_batch_without_a_valid_token_gives_0():
    pair, nothing = (wave(3, 2, 3, 4), wave(4, 2, 3, 4)), torch.zeros(2, 3)
    for name, loss in {"hidden_mse": hidden_mse, "cos": cos}.items():
        assert MATCH_LOSS_MAP[name](*pair, mask=nothing).isnan()
        assert loss(*pair, nothing.bool()) == 0


def test_a_sample_without_a_valid_token_does_not_count_in_fsp():
    pair = [[wave(s, 2, 3, 4), wave(s + 2, 2, 3, 4)] for s in (3, 4)]
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert MATCH_LOSS_MAP["fsp"](*pair, mask=mask).isnan()
    alone = MATCH_LOSS_MAP["fsp"](*([layer[:1] for layer in side] for side in pair), mask=mask[:1])
    assert fsp(*pair, mask.bool()).item() == pytest.approx(alone.item(), rel=1e-12)


def test_a_vector_of_zeros_has_no_direction():
    student, teacher = torch.zeros(1, 4), wave(4, 1, 4)
    assert MATCH_LOSS_MAP["pkd"](student, teacher).isnan()
    assert pkd(student, teacher).item() == pytest.approx(1.0)


def test_the_first_token_comes_after_the_padding():
    pair = wave(3, 1, 3, 4), wave(4, 1, 3, 4)
    mask = torch.tensor([[0, 1, 1]])
    first, second = (MATCH_LOSS_MAP["pkd"](*(side[:, place] for side in pair)).item() for place in (0, 1))
    assert MATCH_LOSS_MAP["pkd"](*pair, mask=mask).item() == pytest.approx(first)
    assert pkd(*pair, mask.bool()).item() == pytest.approx(second)
    assert abs(first - second) > 0.1


def test_strides_do_not_stop_cos():
    pair = wave(3, 3, 2, 4).transpose(0, 1), wave(4, 2, 3, 4)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        MATCH_LOSS_MAP["cos"](*pair)
    expected = MATCH_LOSS_MAP["cos"](*(side.contiguous() for side in pair)).item()
    assert cos(*pair).item() == pytest.approx(expected, rel=1e-10)


def test_nst_divides_by_the_features_with_a_mask_too():
    pair = [[wave(s, 2, 3, 4), wave(s + 2, 2, 3, 4)] for s in (3, 4)]
    assert MATCH_LOSS_MAP["nst"](*pair).item() == pytest.approx(nst(*pair).item(), rel=1e-12)
    assert MATCH_LOSS_MAP["nst"](*pair, mask=MASK).item() == pytest.approx(1.8412097873, abs=5e-11)
    assert nst(*pair, MASK.bool()).item() == pytest.approx(1.0356805053, abs=5e-11)


def test_short_floats_are_computed_in_float32():
    """The relative error against float64 on the same rounded inputs."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return (2 * torch.randn(shape, generator=generator)).bfloat16()

    logits = drawn(64, 1000)
    sides = {
        "ce": (KD_LOSS_MAP["ce"], partial(kd_ce, temperature=1.0), (logits, logits + 0.25 * drawn(64, 1000))),
        "hidden_mse": (MATCH_LOSS_MAP["hidden_mse"], hidden_mse, (drawn(8, 16, 64), drawn(8, 16, 64))),
        "cos": (MATCH_LOSS_MAP["cos"], cos, (drawn(8, 16, 64), drawn(8, 16, 64))),
    }
    for name, (theirs, ours, pair) in sides.items():
        exact = solved(theirs, *(side.double() for side in pair))
        (value, gradient), (mine, pulled) = (
            [((a - b).norm() / b.norm()).item() for a, b in zip(solved(f, *pair), exact, strict=True)]
            for f in (theirs, ours)
        )
        assert value > 5e-4, name
        assert mine < 1e-6, name
        assert pulled < 2**-9, name  # the gradient has the type of the student: one rounding
        assert gradient > 2**-9 or name == "hidden_mse"
