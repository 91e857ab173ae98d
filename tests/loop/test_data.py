"""Batches: order by (seed, epoch) alone, padding that is always stated, names for parts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hookbrew.errors import DataError
from hookbrew.loop import Given, Loader, Pad, mix
from hookbrew.loop.batch import size_of
from hookbrew.loop.data import groups
from hookbrew.loop.order import Order


@given(length=st.integers(1, 50), size=st.integers(1, 60), seed=st.integers(0, 2**31), epoch=st.integers(1, 9))
def test_an_epoch_holds_every_sample_once(length, size, seed, epoch):
    order = Order(length, size, seed, epoch)
    chunks = list(order)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(length))
    assert len(chunks) == len(order)
    assert chunks == list(Order(length, size, seed, epoch))


def test_epochs_and_seeds_differ():
    def first(seed, epoch):
        return next(iter(Order(1000, 1000, seed, epoch)))

    assert first(1, 1) != first(1, 2)
    assert first(1, 1) != first(2, 1)


@given(st.integers(0, 2**63), st.text(), st.integers())
def test_a_mixed_seed_fits_torch(seed, name, number):
    mixed = mix(seed, name, number)
    assert 0 <= mixed < 2**63
    assert mixed == mix(seed, name, number)
    assert mixed != mix(seed, name, number + 1)


def loader(samples, **options):
    options = {"batch_size": 2, "seed": 0, "collate": Pad({}, options.pop("fields", ()))} | options
    return Loader(samples, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_random_state_is_read_or_moved(workers):
    feed = loader([{"x": torch.tensor(i)} for i in range(7)], workers=workers)
    seen = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        seen.append([b["x"].tolist() for b in feed.epoch(3)])
        assert torch.equal(torch.random.get_rng_state(), before)
    assert seen[0] == seen[1]


def test_samples_of_equal_shape_are_stacked_and_others_filled_up():
    samples = [{"ids": torch.arange(n), "label": n} for n in (2, 3)]
    batch = Pad({"ids": 9})(samples)
    assert batch["ids"].tolist() == [[0, 1, 9], [0, 1, 2]]
    assert batch["label"].tolist() == [2, 3]


def test_lists_of_numbers_are_padded_too():
    assert Pad({"ids": 0})([{"ids": [1]}, {"ids": [2, 3]}])["ids"].tolist() == [[1, 0], [2, 3]]


def test_no_length_is_made_up():
    with pytest.raises(DataError) as caught:
        Pad({})([{"ids": torch.arange(n)} for n in (2, 3)])
    assert str(caught.value) == (
        "samples differ in length in 'ids' (2, 3); say what fills the short ones up: pad = { ids = 0 }"
    )


def test_samples_with_different_keys():
    with pytest.raises(DataError, match="samples of one batch have different keys: a; and a, b"):
        Pad({})([{"a": 1}, {"a": 1, "b": 2}])


def test_tuples_get_names():
    (batch,) = loader([(torch.ones(3), 1), (torch.zeros(3), 0)], fields=["input", "labels"], seed=None).epoch(1)
    assert batch["input"].shape == (2, 3)
    assert batch["labels"].tolist() == [1, 0]


def test_tuples_without_names():
    with pytest.raises(DataError) as caught:
        next(iter(Given([(torch.ones(1), torch.ones(1))]).epoch(1)))
    assert str(caught.value) == (
        "a tuple of 2 parts came from the data, and fields gives no names; "
        'write one name a part: fields = ["input", "labels"]'
    )


def test_something_else():
    with pytest.raises(DataError, match="a str came from the data; expected a mapping of names to tensors, or a tuple"):
        next(iter(Given(["text"]).epoch(1)))


def test_an_iterator_is_refused():
    with pytest.raises(DataError, match="can be used once only; give a list of batches or a DataLoader"):
        Given(iter([{}]))


def test_an_empty_dataset():
    with pytest.raises(DataError, match="the dataset is empty: list of length 0"):
        loader([])


def test_no_dataset():
    with pytest.raises(DataError, match=r"a dataset needs len\(\) and integer indices; generator lacks them"):
        loader(i for i in range(3))


def test_an_empty_epoch():
    with pytest.raises(DataError, match="the loader gave no batch in epoch 2"):
        list(Given([]).epoch(2))


def test_a_loader_without_a_length():
    class Endless:
        def __iter__(self):
            yield {}

    with pytest.raises(DataError, match=r"Endless has no len\(\): give the length as steps, not epochs"):
        len(Given(Endless()))


def test_groups():
    assert [len(group) for group in groups(iter([{}] * 5), 2)] == [2, 2, 1]


def test_the_size_of_a_batch():
    assert size_of({"word": "x", "ids": torch.ones(3, 2)}) == 3
    with pytest.raises(DataError, match="the batch holds no tensor; its keys are word"):
        size_of({"word": "x"})


def test_a_mapping_is_no_dataset():
    with pytest.raises(DataError) as caught:
        loader({"train": [1], "test": [2]})
    assert str(caught.value) == "a dict is no dataset; take one of its values: train, test"


@pytest.mark.parametrize(("one", "two"), [(torch.ones(3, 4), torch.ones(3, 5)), (torch.ones(()), torch.ones(2))])
def test_shapes_that_cannot_be_filled_up(one, two):
    with pytest.raises(DataError) as caught:
        Pad({"x": 0})([{"x": one}, {"x": two}])
    assert str(caught.value) == (
        f"samples differ in shape in 'x' ({tuple(one.shape)}, {tuple(two.shape)}); "
        "only the first dimension can be filled up"
    )


def test_arrays_of_numpy_are_padded_too():
    samples = [{"ids": np.arange(n)} for n in (1, 2)]
    assert Pad({"ids": 9})(samples)["ids"].tolist() == [[0, 9], [0, 1]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_is_one_line_whoever_finds_it(workers):
    feed = loader([{"ids": torch.arange(n)} for n in (2, 3)], workers=workers)
    with pytest.raises(DataError) as caught:
        list(feed.epoch(1))
    assert str(caught.value).startswith("samples differ in length in 'ids' (2, 3); say")


class Failing:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == 4:
            raise LookupError("row 4")
        return {"x": index}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_of_the_data_says_where(workers):
    with pytest.raises(LookupError, match="row 4") as caught:
        list(loader(Failing(), seed=None, workers=workers).epoch(7))
    assert caught.value.__notes__ == ["raised by batch 3 of epoch 7 of the data"]
