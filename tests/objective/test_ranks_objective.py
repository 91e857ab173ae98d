"""Wrapped students on two ranks: `fit` trains what one process trains on both ranks' data, and leaves them clean."""

from pathlib import Path

import pytest
from torch import nn

from hookbrew.ranks import layers


@pytest.fixture(scope="session")
def trainings(launched):
    """trainings(case): what both ranks found."""
    return launched(Path(__file__).with_name("ranks_objective.py"))


DDP = ["ddp hidden", "ddp both", "ddp static hidden", "ddp adamw twice"]
FSDP = ["fsdp hidden", "fsdp both", "fsdp kept hidden", "fsdp root hidden", "fsdp adamw twice"]


@pytest.mark.parametrize("case", [*DDP, *FSDP, "plain both", "plain hidden", "plain chunked", "partly both"])
def test_students_are_those_of_one_process(trainings, case):
    """Projections too, which differ between ranks at first; and logits and gradient norms, clipped."""
    for result in trainings(case):
        assert max(result["difference"].values()) < 1e-12
        assert result["moved"] > 1e-4


@pytest.mark.parametrize("case", ["plain shared", "ddp shared", "fsdp shared"])
def test_each_sample_counts_alike(trainings, case):
    """The mean of the means of two ranks would be far from the mean over all samples."""
    assert max(trainings(case)) < 1e-12


def test_a_wrapped_student_needs_its_output(trainings):
    why = "train.chunked: a wrapper averages the student's gradients, and waits for its output"
    assert trainings("ddp chunked") == [f"losses[0]: {why}\nlosses[1]: {why}"] * 2


def test_logits_of_other_lengths(trainings):
    """Where a model leaves out what is padding in its rows, each rank computes all of them."""
    assert max(trainings("trimmed")) < 1e-12


def test_a_gradient_that_one_rank_has(trainings):
    one, other = trainings("dropped")
    assert one == other


def test_a_folder_of_both(trainings):
    """The first rank makes it, and writes."""
    assert trainings("written") == [[["checkpoints", "final", "metrics.jsonl"], 2]] * 2


def test_metrics_that_differ(trainings):
    """The first rank says which student is the best; the other would not come to save it."""
    assert trainings("best") == [18, 18]


def test_tasks_of_loaders_in_parts(trainings):
    """Both draw the same tasks, although one has more samples of the second."""
    one, other = trainings("mixed")
    assert one == other
    assert {*one} == {"a", "b"}
    assert all("the processes have 4, 5 batches" in told for told in trainings("mixed uneven"))


def test_streams_of_other_lengths(trainings):
    """The epoch of both ends where the first of them ends."""
    assert trainings("streamed") == [[2, 4, 5]] * 2


def test_layers_that_are_sharded():
    """Of lists in a list what they hold, a layer that stands twice once, and none that shares a weight."""

    def block():
        return nn.Sequential(nn.Linear(2, 2))

    pairs = nn.ModuleList(nn.ModuleList([block(), block()]) for _ in range(2))
    assert layers(nn.ModuleDict({"layers": pairs})) == [module for pair in pairs for module in pair]
    twice, tied = nn.ModuleList([block()] * 3), nn.ModuleList([block(), block(), block()])
    assert layers(nn.ModuleDict({"layers": twice})) == [twice[0]]
    tied[1][0].weight = tied[0][0].weight
    assert layers(nn.ModuleDict({"layers": tied})) == [tied[2]]
    alone, head = nn.ModuleList([block()]), nn.Linear(2, 2)
    head.weight = alone[0][0].weight
    assert layers(nn.ModuleDict({"layers": alone, "head": head})) == []


def test_what_cannot_be_sharded(trainings):
    assert all("scalar parameters" in told for told in trainings("unshared"))


def test_no_wrapper_is_left(trainings):
    assert trainings("left") == [0, 0]


def test_loaders_that_would_wait_for_each_other(trainings):
    assert all("the processes have 6, 5 batches in an epoch" in told for told in trainings("uneven"))
    assert all("the evaluation data is another in each process" in told for told in trainings("other evaluation"))


@pytest.mark.parametrize("case", [*DDP, *FSDP, "plain both"])
def test_nothing_is_left_on_the_wrapped_model(trainings, case):
    """Hooks, and parameters that FSDP2 gathered for an evaluation."""
    assert [result["clean"] for result in trainings(case)] == [True, True]


def test_the_teacher_stops_early_beside_a_wrapped_student(trainings):
    for case, last in {"ddp hidden": "block.1", "fsdp hidden": "block.1", "ddp both": None, "fsdp both": None}.items():
        assert [result["stop"] for result in trainings(case)] == [last, last]


@pytest.mark.parametrize("case", ["ddp reach", "fsdp reach", "fsdp root reach"])
def test_check_reports_the_gradients_of_a_wrapped_student(trainings, case):
    for difference, same, clean in trainings(case):
        assert difference < 1e-12
        assert (same, clean) == (True, True)
