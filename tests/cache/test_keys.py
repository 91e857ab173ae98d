"""Keys of examples: the content counts, where it stands does not."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from hookbrew.cache import examples
from hookbrew.errors import CacheError

TEXTS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=6)


def batch(texts, more=0, fill=0, **extra):
    """Padded at the end, by `more` than the longest one needs."""
    rows = [torch.tensor(text) for text in texts]
    ids = pad_sequence([*rows, torch.zeros(max(map(len, texts)) + more)], batch_first=True, padding_value=fill)[:-1]
    mask = torch.arange(ids.shape[1])[None] < torch.tensor([len(text) for text in texts])[:, None]
    return {"input_ids": ids.long(), "attention_mask": mask.long(), **extra}


def keys(*arguments, **named):
    return examples(batch(*arguments, **named)).keys


@settings(deadline=None)
@given(TEXTS, st.integers(0, 4), st.integers(0, 9), st.randoms())
def test_batch_size_padding_and_order_do_not_count(texts, more, fill, random):
    alone = [keys([text])[0] for text in texts]
    assert list(keys(texts, more, fill)) == alone
    order = random.sample(range(len(texts)), len(texts))
    assert list(keys([texts[i] for i in order], more)) == [alone[i] for i in order]


@settings(deadline=None)
@given(TEXTS)
def test_another_text_has_another_key(texts):
    found = keys(texts)
    assert len(set(found)) == len({tuple(text) for text in texts})


@settings(deadline=None)
@given(TEXTS, st.data())
def test_another_mask_has_another_key(texts, data):
    whole = batch(texts)
    row = data.draw(st.integers(0, len(texts) - 1))
    place = data.draw(st.integers(0, len(texts[row]) - 1))
    holed = {**whole, "attention_mask": whole["attention_mask"].clone()}
    holed["attention_mask"][row, place] = 0
    before, after = examples(whole).keys, examples(holed).keys
    assert [a == b for a, b in zip(before, after, strict=True)] == [i != row for i in range(len(texts))]


@settings(deadline=None)
@given(TEXTS, st.data())
def test_every_bit_counts(texts, data):
    pixels = torch.rand(len(texts), 2, 3)
    row = data.draw(st.integers(0, len(texts) - 1))
    other = pixels.clone()
    other[row].view(torch.uint8)[data.draw(st.integers(0, 1)), data.draw(st.integers(0, 11))] ^= 1
    before, after = (keys(texts, pixels=p) for p in (pixels, other))
    assert [a == b for a, b in zip(before, after, strict=True)] == [i != row for i in range(len(texts))]


OTHERS = [
    {"token_type_ids": torch.zeros(2, 2).long()},
    {"token_type_ids": torch.ones(2, 2).long()},
    {"token_type_ids": torch.zeros(2, 2).int()},
    {"token_type_ids": torch.zeros(2, 2)},
    {"token_types": torch.zeros(2, 2).long()},
    {"pixels": torch.zeros(2, 4, 1)},
    {"pixels": torch.zeros(2, 2, 2)},
    {"pixels": torch.zeros(2, 2, 2).bfloat16()},
    {"scale": torch.tensor(1)},
    {"scale": torch.tensor(1.0)},
    {"scale": 1},
    {"scale": True},
    {"scale": "1"},
    {"scale": torch.ones(1, 3)},
    {},
]


def test_names_dtypes_shapes_and_plain_inputs_count():
    found = [keys([[1, 2], [3, 4]], **extra) for extra in OTHERS]
    assert len({key for pair in found for key in pair}) == 2 * len(OTHERS)


def test_the_order_of_inputs_and_how_they_lie_in_memory_do_not_count():
    plain = batch([[1, 2, 3], [4, 5]])
    lying = {name: plain[name].t().contiguous().t() for name in reversed(plain)}
    assert examples(lying) == examples(plain)


def test_a_row_that_all_examples_share():
    """As position_ids of shape (1, L) are: one of a batch and one of a batch of one are the same."""
    table = torch.rand(1, 4)
    assert keys([[1], [2]], table=table) == keys([[1]], table=table) + keys([[2]], table=table)


def test_padding_before_the_text_moves_its_positions():
    def left(more):
        ids = torch.tensor([[0] * more + [1, 2, 3]])
        return examples({"input_ids": ids, "attention_mask": (ids > 0).long()})

    assert len({left(more).keys for more in range(3)}) == 3
    assert [left(more).spans for more in range(3)] == [((0, 3),), ((1, 4),), ((2, 5),)]


def test_spans():
    found = examples(batch([[1, 2, 3], [4]], 2))
    assert (found.spans, found.length) == (((0, 3), (0, 1)), 5)


def test_without_a_mask_all_is_content():
    first, second = batch([[1, 2]], 1), batch([[1, 2]], 2)
    for inputs in (first, second):
        del inputs["attention_mask"]
    assert examples(first).keys != examples(second).keys


def test_a_mask_that_leaves_nothing_hides_no_content():
    mask = torch.zeros(2, 2).long()
    first, second = examples({"input_ids": torch.tensor([[1, 2], [3, 4]]), "attention_mask": mask}).keys
    assert first != second


def test_a_mask_of_floats_says_nothing():
    """It may be one that is added to scores, where 0 stays."""
    mask = torch.tensor([[0.0, -torch.inf]] * 2)
    first, second = examples({"input_ids": torch.tensor([[1, 2], [3, 2]]), "attention_mask": mask}).keys
    assert first != second


def test_an_image_is_not_cut_by_the_mask_of_a_text():
    """Though it has as many channels as the text has tokens."""
    one, other = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    other[:, 2] = 1
    assert keys([[1]], 2, pixels=one) != keys([[1]], 2, pixels=other)


@pytest.mark.parametrize(("own", "other"), [("", "decoder_"), ("decoder_", "")])
def test_a_text_is_not_cut_by_the_mask_of_the_other(own, other):
    """Of an encoder and its decoder, though one is as long as the other."""
    cut, whole = batch([[1, 2], [1, 2]], 2), torch.tensor([[5, 6, 7, 8], [5, 6, 9, 8]])
    inputs = {**{own + name: tensor for name, tensor in cut.items()}, f"{other}input_ids": whole}
    first, second = examples(inputs, f"{own}attention_mask").keys
    assert first != second


def test_embeddings_are_cut_where_that_is_said():
    def made(more):
        inputs = batch([[1, 2]], more, embeds=torch.cat([torch.ones(1, 2, 3), torch.zeros(1, more, 3)], 1))
        return examples(inputs, tokens=["embeds", "input_ids"]).keys

    assert made(0) == made(2)


@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        ({"a": [1]}, {}, "input 'a' is a list, whose content makes no key; expected a tensor or a number"),
        ({"a": 1}, {}, "the teacher gets no tensor with examples in it"),
        (
            {"a": torch.ones(2), "b": torch.ones(3)},
            {},
            "inputs of the teacher differ in their number of rows (a 2, b 3); expected one an example",
        ),
        (
            batch([[1, 2]]),
            {"tokens": ["input_id"]},
            "there is no input 'input_id' that could be padded; did you mean 'input_ids'?",
        ),
        (
            batch([[1, 2]], x=torch.ones(1, 3)),
            {"tokens": ["x"]},
            "input 'x' is not padded as the mask is: it has shape (1, 3), the mask (1, 2)",
        ),
    ],
)
def test_what_has_no_key(inputs, named, message):
    with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
        examples(inputs, **named)
