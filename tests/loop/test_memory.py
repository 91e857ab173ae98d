"""A forward pass that is out of memory is made again with fewer samples, and the training is the same."""

import pytest
import torch
from torch import nn

import hookbrew as hb


class Hungry(nn.Module):
    """Has no memory for more than some samples at once; draws random numbers before it finds out."""

    most = 100

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        drawn = torch.rand(()) if self.training else torch.ones(())
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError(f"tried to allocate {len(x)} samples")
        self.drawn = drawn
        return self.head(torch.tanh(self.body(x)))


def trained(most, cuts=(7,), **options):
    """The student after three steps of 7 samples with gaps in their labels, the sizes of passes, and the state.

    cuts: the batches that make these 7.
    """
    torch.manual_seed(0)
    teacher, student = Hungry(), Hungry()
    student.most = most
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, -100, 2, 1, -100, -100, 1]).split(cuts)
    rows = [torch.randn(7, 4, generator=generator).split(cuts) for _ in range(3)]
    batches = [{"x": x, "labels": part} for parts in rows for x, part in zip(parts, labels, strict=True)]
    sizes = []

    class Watch:
        def forward_end(self, state):
            sizes.append(len(state.batch["x"]))

    losses = [hb.loss("ce"), hb.loss("hidden_mse", student="body", teacher="body", mask=False)]
    run = hb.Distillation(teacher, student, losses)
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    state = run.fit(batches, epochs=1, optimizer=optimizer, callbacks=[Watch()], **options)
    return student, sizes, state


def test_samples_are_halved_and_the_gradient_is_the_same(caplog):
    whole, sizes, _ = trained(100)
    assert sizes == [7, 7, 7]
    parts, sizes, state = trained(2, out_of_memory="halve")
    assert sizes == [2, 2, 2, 1] * 3
    assert state.micro_batch_size == 2
    assert [record.getMessage() for record in caplog.records] == [
        "step 1: out of memory; 4 samples a pass now",
        "step 1: out of memory; 2 samples a pass now",
    ]
    for expected, found in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_what_a_failed_pass_drew_is_drawn_again():
    """As if the samples had come in smaller batches."""
    failed, _, _ = trained(4, out_of_memory="halve")
    after = torch.get_rng_state()
    cut, sizes, _ = trained(4, cuts=(4, 3), accumulate=2)
    assert sizes == [4, 3] * 3
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(failed.drawn, cut.drawn)


def test_it_stops_unless_told_otherwise():
    with pytest.raises(torch.OutOfMemoryError, match="tried to allocate 7 samples"):
        trained(2)


def test_one_sample_that_is_too_much():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trained(0, out_of_memory="halve")
    assert caught.value.__notes__ == ["out of memory with one sample in a forward pass: the model itself is too large"]
