"""Several tasks in one stream: how often each is drawn, in which order, and how it is evaluated."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hookbrew.errors import DataError
from hookbrew.loop import Chain, Given, Loader, Mixture, Pad


def loader(number, size=2, start=0, seed=0):
    samples = [{"x": torch.tensor(start + i)} for i in range(number)]
    return Loader(samples, batch_size=size, seed=seed, collate=Pad({}))


def drawn(mixture, number=1):
    return [(batch["task"], batch["x"].tolist()) for batch in mixture.epoch(number)]


@given(sizes=st.lists(st.integers(1, 10**7), min_size=1, max_size=5), tau=st.floats(0, 50), size=st.integers(1, 2**20))
def test_the_shares_are_of_samples_whatever_the_batch_size(sizes, tau, size):
    """Not of batches: two equal data sets with batches of 4 and 20 are drawn alike."""

    class Many:
        def __init__(self, number):
            self.samples = number

        def __len__(self):
            return -(-self.samples // size)

    shares = Mixture({str(i): Many(n) for i, n in enumerate(sizes)}, tau=tau).shares
    weights = [(n / max(sizes)) ** tau for n in sizes]
    assert list(shares.values()) == pytest.approx([w / sum(weights) for w in weights])


def test_unlike_batch_sizes_are_drawn_alike():
    shares = Mixture({"a": loader(40, 4), "b": loader(40, 20)}).shares
    assert shares == {"a": 0.5, "b": 0.5}
    assert Mixture({"a": loader(27), "b": loader(3)}, tau=0.5).shares == pytest.approx({"a": 0.75, "b": 0.25})
    assert Mixture({"a": loader(27), "b": loader(3)}, tau=0.0).shares == {"a": 0.5, "b": 0.5}


def test_no_tau_is_too_large():
    assert Mixture({"a": loader(27), "b": loader(3)}, tau=1e9).shares == {"a": 1.0, "b": 0.0}


def test_tasks_are_drawn_as_often_as_their_shares_say():
    mixture = Mixture({"a": loader(900, 1), "b": loader(100, 1)}, tau=0.5)
    counts = Counter(task for task, _ in drawn(mixture))
    assert counts.total() == len(mixture) == 1000
    assert abs(counts["a"] - 750) < 5 * (1000 * 0.75 * 0.25) ** 0.5


def test_an_epoch_is_as_long_as_all_data_together():
    mixture = Mixture({"a": loader(7, 2), "b": loader(9, 4)})
    assert (len(mixture), mixture.samples) == (4 + 3, 16)
    assert len(drawn(mixture)) == 7


def test_the_order_is_a_function_of_seed_and_epoch():
    def made(seed=0):
        return Mixture({"a": loader(20), "b": loader(12, start=100)}, seed=seed)

    mixture = made()
    third = drawn(mixture, 3)
    assert drawn(mixture, 1) != third
    assert drawn(mixture, 3) == third
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert drawn(made(), 3) == third
    assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn(made(1), 3) != third


def test_an_epoch_left_half_way_changes_no_other():
    mixture = Mixture({"a": loader(20), "b": loader(12, start=100)})
    whole = drawn(mixture, 2)
    stream = mixture.epoch(1)
    next(stream)
    del stream
    assert drawn(mixture, 2) == whole


def test_a_small_task_begins_anew_in_a_new_order():
    """Each pass over its data has every sample once, and no pass of another epoch is repeated."""
    mixture = Mixture({"a": loader(40, 1), "b": loader(4, 1)}, tau=0.0)
    passes = []
    for epoch in (1, 2, 3):
        mine = [x[0] for task, x in drawn(mixture, epoch) if task == "b"]
        assert len(mine) > 8
        passes += [tuple(mine[i : i + 4]) for i in range(0, len(mine) - 3, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes)
    assert len(set(passes)) > 6


def test_the_first_batch_of_each_task():
    first = Mixture({"a": loader(20), "b": loader(12, start=100)}).first()
    assert [batch["task"] for batch in first] == ["a", "b"]
    assert first[1]["x"].tolist() == next(loader(12, start=100).epoch(1))["x"].tolist()


def test_a_chain_gives_everything_once_task_by_task():
    chain = Chain({"a": loader(5, 2, seed=None), "b": loader(3, 2, 100, seed=None)})
    assert (len(chain), chain.samples) == (5, 8)
    for epoch in (1, 2):
        assert drawn(chain, epoch) == [("a", [0, 1]), ("a", [2, 3]), ("a", [4]), ("b", [100, 101]), ("b", [102])]
    assert [batch["task"] for batch in chain.first()] == ["a", "b"]


@pytest.mark.parametrize("kind", [Mixture, Chain])
def test_a_key_task_of_the_data_is_refused(kind):
    feed = kind({"a": Given([{"x": torch.ones(2), "task": torch.ones(2)}])})
    message = "the data of task 'a' has a key 'task', which says of what task a batch is; rename it"
    with pytest.raises(DataError) as caught:
        feed.first()
    assert str(caught.value) == message
    with pytest.raises(DataError):
        list(feed.epoch(1))


def test_the_batch_of_the_user_is_left_as_it_is():
    batch = {"x": torch.ones(2)}
    list(Mixture({"a": Given([batch])}).epoch(1))
    assert list(batch) == ["x"]
