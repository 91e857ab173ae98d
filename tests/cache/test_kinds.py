"""Kinds that keep less than all: how far what they give is from what they were given."""

import pytest
import torch

from hookbrew.cache import Full, Hidden, Rounded, Sampled, TopK, examples, fingerprint, opened
from hookbrew.errors import CacheError
from hookbrew_plugins.losses import kd_ce, topk_tail


def back(kind, outputs):
    """What comes out again."""
    parts = kind.encode(outputs)
    assert [part.torch for part in kind.parts] == [tensor.dtype for tensor in parts]
    return kind.decode(dict(zip([part.name for part in kind.parts], parts, strict=True)))


@pytest.mark.parametrize("k", [1, 3, 7, 9])
def test_topk_is_all_that_topk_tail_reads(k):
    student, teacher = torch.randn(2, 4, 5, 7).unbind()
    found = back(TopK(k, temperature=2.0, tokens=True, classes=7), {"logits": teacher})["logits"]
    for read in range(1, k + 1):
        expected = topk_tail(student, teacher, k=read, temperature=2.0)
        # in fp16: 1/2048 of log-probabilities of up to 10
        assert topk_tail(student, found, k=read, temperature=2.0).item() == pytest.approx(expected.item(), abs=5e-3)
    exact = back(TopK(k, "fp32", 2.0, tokens=True, classes=7), {"logits": teacher})["logits"]
    expected = topk_tail(student, teacher, k=k, temperature=2.0)
    assert topk_tail(student, exact, k=k, temperature=2.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_draws_are_without_bias_in_kd_ce():
    """Each row draws for itself; the mean of the loss over many rows is that of all logits."""
    torch.manual_seed(0)
    teacher, student = 2 * torch.randn(1, 6), torch.randn(1, 6)
    rows = teacher + 1e-6 * torch.randn(4000, 6)
    found = back(Sampled(12, temperature=2.0, classes=6), {"logits": rows})["logits"]
    share, p = (found / 2).softmax(-1), (teacher / 2).softmax(-1)
    deviation = (p * (1 - p) / 12 / 4000).sqrt()
    assert ((share.mean(0) - p).abs() < 4 * deviation).all()
    exact = kd_ce(student, teacher, temperature=2.0).item()
    assert kd_ce(student.expand(4000, -1), found, temperature=2.0).item() == pytest.approx(exact, rel=0.01)
    alone = torch.full((1, 6), -torch.inf).scatter(1, teacher.argmax(1, keepdim=True), 0.0)
    assert abs(kd_ce(student, alone, temperature=2.0).item() - exact) > 0.1  # the likeliest class, as if it were all


def test_what_is_drawn_goes_by_the_example_and_not_by_its_batch():
    rows = torch.randn(5, 3, 20)
    kind = Sampled(8, tokens=True, classes=20)
    (whole,), (part,) = kind.encode({"logits": rows}), kind.encode({"logits": rows[3:]})
    assert torch.equal(whole[3:], part)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 5


@pytest.mark.parametrize("kind", [Full("fp32", tokens=True), Hidden(["logits"], ["logits"], "fp32")])
def test_bytes_are_off_by_half_a_step(kind):
    rows = torch.randn(3, 4, 50) * torch.tensor([1e-4, 1, 1e4])[:, None, None]
    rows[0, 0] = 0
    found = back(Rounded(kind), {"logits": rows})["logits"]
    step = rows.abs().amax(-1, keepdim=True) / 127
    assert ((found - rows).abs() <= step * 0.5001).all()
    assert (found != rows).any()
    assert torch.equal(found[0, 0], rows[0, 0])


def test_bytes_have_no_infinite_numbers():
    rows = torch.tensor([[0.0, -torch.inf]])
    with pytest.raises(CacheError, match="'logits' holds infinite numbers, which int8 has none for; write fp16"):
        Rounded(Full()).encode({"logits": rows})
    with pytest.raises(CacheError, match=r"'x' of shape \(2,\) has no features to round; write fp16"):
        Rounded(Hidden(["x"], dtype="fp32")).encode({"x": torch.ones(2)})


@pytest.mark.parametrize("axes", [(1, 2), (1,)])
def test_an_attention_lies_where_its_tokens_are(tmp_path, axes):
    """Texts of several lengths, padded on the left or on the right, these also in a wider batch."""
    kind = Hidden(["map"], dtype="fp32", axes={"map": axes})
    lengths, sizes = [3, 1, 4], {axis: 4 for axis in axes}
    full = torch.randn(3, 2, *(sizes.get(axis, 5) for axis in (1, 2)))

    def batch(length, left):
        mask = torch.zeros(3, length, dtype=torch.long)
        found = torch.zeros(3, 2, *(length if axis in axes else 5 for axis in (1, 2)))
        for row, count in enumerate(lengths):
            here = slice(length - count, length) if left else slice(0, count)
            mask[row, here] = 1
            keys = here if 2 in axes else slice(None)
            found[row, :, here, keys] = full[row, :, :count, : count if 2 in axes else None]
        return examples({"attention_mask": mask}), found

    for left in (True, False):
        cache = opened(tmp_path / str(left), fingerprint(torch.nn.Linear(1, 1), kind.facts()))
        keyed, found = batch(4, left)
        with cache.writer(kind) as writer:
            assert writer.put(keyed, {"map": found}) == 3
        cache.refresh()
        assert torch.equal(cache.read(keyed)["map"], found)
        if not left:
            keyed, found = batch(6, left)
            assert torch.equal(cache.read(keyed)["map"], found)
