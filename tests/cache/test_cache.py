"""What is put is read again, bit for bit, and damage is told with its place."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.cache import Cache, Examples, Full, Hidden, TopK, examples, fingerprint, opened
from hookbrew.cache.shard import layout
from hookbrew.errors import CacheError


@pytest.fixture(params=[True, False], ids=["pooled", "tokens"])
def teacher(request, tagger):
    return tagger(pooled=request.param).eval()


def test_bit_for_bit_in_any_order_batch_size_and_padding(tmp_path, teacher, batches, seen, build):
    """The second batch has rows of the first, shuffled and padded further."""
    (first,) = batches([3, 6, 2, 5, 1])
    order = [4, 2, 0]
    ids, mask = (torch.zeros(3, 9, dtype=torch.long) for _ in range(2))
    ids[:, :6], mask[:, :6] = first["input_ids"][order], first["attention_mask"][order]
    cache = build(tmp_path, teacher, [first], Full(tokens=not teacher.pooled))
    inputs, keyed = seen(first)
    with torch.no_grad():
        logits = teacher(**inputs)
    expected = logits if teacher.pooled else logits * inputs["attention_mask"][..., None]
    assert torch.equal(cache.read(keyed)["logits"], expected)
    found = Cache(tmp_path).read(seen({"input_ids": ids, "attention_mask": mask})[1])["logits"]
    assert found.shape == ((3, 3) if teacher.pooled else (3, 9, 3))
    assert torch.equal(found if teacher.pooled else found[:, :6], expected[order])
    assert found[:, 6:].eq(0).all()


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.integers(0, 2**20),
    st.sampled_from(["fp32", "fp16", "bf16"]),
)
def test_any_lengths_and_dtypes(tmp_path_factory, lengths, seed, dtype):
    """Numbers of any size and sign, infinite ones too."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(mask.numel()).view(mask.shape)
    keyed = examples({"input_ids": ids, "attention_mask": mask})
    kind = Hidden(("a", "b"), ("a",), dtype)
    parts = {
        "a": torch.randn(*mask.shape, 3, generator=generator),
        "b": torch.randn(len(ids), 2, 2, generator=generator),
    }
    parts["a"][0, 0] = torch.tensor([torch.inf, -torch.inf, -0.0])
    folder = tmp_path_factory.mktemp("cache")
    cache = opened(folder, fingerprint(torch.nn.Linear(1, 1), kind.facts()))
    with cache.writer(kind, largest=64) as writer:
        for row in range(len(ids)):
            some = Examples(keyed.keys[row : row + 1], keyed.spans[row : row + 1], keyed.length)
            assert writer.put(some, {name: part[row : row + 1] for name, part in parts.items()}) == 1
    found = Cache(folder).read(keyed)
    kept = {name: part.to(found[name].dtype) for name, part in parts.items()}
    assert torch.equal(found["a"], kept["a"].where(mask[..., None].bool(), 0))
    assert torch.equal(found["a"][0, 0].signbit(), torch.tensor([False, True, True]))
    assert torch.equal(found["b"], kept["b"])


def test_what_is_there_is_not_written_again(tmp_path, tagger, batches, seen, build):
    first, second = batches([3, 2], [4, 1])
    teacher = tagger()
    cache = build(tmp_path, teacher, [first])
    size = cache.size
    assert len(cache) == 2
    assert build(tmp_path, teacher, [first, first]).size == size
    assert cache.missing(seen(second)[1]) == [0, 1]
    cache = build(tmp_path, teacher, [first, second, second])
    assert (len(cache), cache.size) == (4, 2 * size)
    assert len([*tmp_path.glob("*.data")]) == 2


def test_a_reader_sees_what_is_put_while_it_is_open(tmp_path, tagger, batches, seen, build):
    """Also when a shard grows that it knew."""
    teacher, (first, second) = tagger(), batches([3, 2], [4, 1])
    reader = build(tmp_path, teacher, [])
    with torch.no_grad(), Cache(tmp_path).writer(Full()) as writer:
        for number, batch in enumerate((first, second), start=1):
            inputs, keyed = seen(batch)
            logits = teacher(**inputs)
            writer.put(keyed, {"logits": logits})
            reader.refresh()
            assert (len(reader), len(reader.shards)) == (2 * number, 1)
            assert torch.equal(reader.read(keyed)["logits"], logits)
    assert reader.verify() == []


def test_a_shard_that_is_full_is_followed_by_another(tmp_path, tagger, batches, seen):
    teacher, kind = tagger(), Full()
    cache = opened(tmp_path, fingerprint(teacher, kind.facts()))
    made = batches([3, 2], [4, 1], [5, 5])
    with torch.no_grad(), cache.writer(kind, largest=20) as writer:
        for batch in made:
            inputs, keyed = seen(batch)
            writer.put(keyed, {"logits": teacher(**inputs)})
    cache.refresh()
    assert (len(cache), len(cache.shards)) == (6, 3)
    assert [len(cache.missing(seen(batch)[1])) for batch in made] == [0, 0, 0]


def test_topk_and_the_mass_of_the_others(tmp_path, seen, batches):
    (batch,) = batches([3, 2])
    _, keyed = seen(batch)
    logits = torch.randn(2, 3, 10) * 4
    kind = TopK(4, "fp32", temperature=2.0, tokens=True)
    cache = opened(tmp_path, fingerprint(torch.nn.Linear(1, 1), kind.facts()))
    with cache.writer(kind) as writer:
        writer.put(keyed, {"logits": logits})
    cache.refresh()
    found = cache.read(keyed)
    p = (logits.double() / 2).softmax(-1)
    values, indices = p.topk(4)
    valid = batch["attention_mask"].bool()
    assert {name: part.dtype for name, part in found.items()} == {
        "values": torch.float32,
        "indices": torch.int32,
        "tail": torch.float32,
    }
    assert torch.equal(found["indices"][valid].long(), indices[valid])
    torch.testing.assert_close(found["values"][valid].double().exp(), values[valid])
    torch.testing.assert_close(found["tail"][valid].double().exp(), 1 - values.sum(-1)[valid])


def test_topk_of_pooled_logits(tmp_path, seen, batches):
    _, keyed = seen(*batches([3, 2]))
    kind, logits = TopK(2, "fp32"), torch.tensor([[3.0, 1, 2], [0, 0, 9]])
    cache = opened(tmp_path, fingerprint(torch.nn.Linear(1, 1), kind.facts()))
    with cache.writer(kind) as writer:
        writer.put(keyed, {"logits": logits})
    cache.refresh()
    found = cache.read(keyed)
    assert found["indices"].tolist() == [[0, 2], [2, 0]]
    torch.testing.assert_close(found["tail"], logits.log_softmax(-1)[[0, 1], [1, 1]])


def test_topk_of_fewer_classes_has_no_tail():
    values, indices, tail = TopK(64).encode({"logits": torch.zeros(1, 3)})
    assert (values.shape, indices.shape, tail.tolist()) == ((1, 3), (1, 3), [-torch.inf])


def test_another_teacher_or_kind_is_refused(tmp_path, tagger, build):
    teacher = tagger()
    build(tmp_path, teacher, [])
    with pytest.raises(CacheError, match=r"is of something else: stored\.parts .*fp32.* before, .*fp16.* now"):
        build(tmp_path, teacher, [], Full("fp16"))
    teacher.head.bias.data[0] += 1
    with pytest.raises(CacheError, match=r"is of something else: weights \w{32} before, \w{32} now; name another"):
        build(tmp_path, teacher, [])
    with pytest.raises(CacheError, match="keeps "):
        Cache(tmp_path).writer(TopK())


BAD = [
    (torch.zeros(3, 3), "'logits' has shape (3, 3), and the batch 2 examples"),
    (torch.zeros(2, 4, 3), "logits of shape (2, 4, 3) cannot be kept; expected (B, C)"),
    (torch.full((2, 3), torch.nan), "the teacher gave 'logits' with NaN in it, which is not kept"),
    (torch.full((2, 3), 70000.0), "'logits' holds numbers that are too large for fp16; keep it in bf16 or fp32"),
]


@pytest.mark.parametrize(("logits", "message"), BAD)
def test_outputs_that_do_not_fit(tmp_path, tagger, batches, seen, build, logits, message):
    cache = build(tmp_path, tagger(), [], Full("fp16"))
    _, keyed = seen(*batches([3, 2]))
    with cache.writer(Full("fp16")) as writer, pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
        writer.put(keyed, {"logits": logits})


def test_more_outputs_that_do_not_fit(tmp_path, batches, seen):
    _, keyed = seen(*batches([3, 2]))
    kind = Hidden(("hidden",), ("hidden",))
    cache = opened(tmp_path, fingerprint(torch.nn.Linear(1, 1), kind.facts()))
    with cache.writer(kind) as writer:
        with pytest.raises(CacheError, match=r"'hidden' has shape \(2, 4, 3\), and the mask 3 tokens"):
            writer.put(keyed, {"hidden": torch.zeros(2, 4, 3)})
        with pytest.raises(CacheError, match=r"has shape .*; at most 4 dimensions an example can be kept"):
            writer.put(keyed, {"hidden": torch.zeros(2, 3, 1, 1, 1, 1)})
        with pytest.raises(CacheError, match=r"^the teacher gave no 'hidden' to keep; did you mean 'hiden'\?$"):
            writer.put(keyed, {"hiden": torch.zeros(2, 3, 1)})
    with pytest.raises(CacheError, match=r"^outputs are not kept in 'float16'; one of: bf16, fp16, fp32$"):
        Full("float16")


def test_examples_that_are_not_there(tmp_path, tagger, batches, seen, build):
    first, second = batches([3], [3, 2])
    cache = build(tmp_path, tagger(), [first])
    _, keyed = seen(second)
    first = f"the first is row 0, key {keyed.keys[0].hex()}"
    message = f"the cache {tmp_path} has no outputs for 2 of 2 examples; {first}"
    with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
        cache.read(keyed)


def test_shapes_that_make_no_batch(tmp_path):
    kind, keyed = Hidden(("map",), dtype="fp32"), [examples({"x": torch.tensor([n])}) for n in range(2)]
    cache = opened(tmp_path, fingerprint(torch.nn.Linear(1, 1), kind.facts()))
    with cache.writer(kind) as writer:
        for n in range(2):
            writer.put(keyed[n], {"map": torch.ones(1, 2, 3 + n)})
    cache.refresh()
    assert [cache.read(each)["map"].shape for each in keyed] == [(1, 2, 3), (1, 2, 4)]
    with pytest.raises(CacheError, match=r"^'map' has several shapes in one batch: \(2, 3\), \(2, 4\)$"):
        cache.read(examples({"x": torch.arange(2)}))


@pytest.fixture
def three(tmp_path, tagger, batches, seen, build):
    """A cache of three examples, each in a record of 16 bytes, and their keys."""
    (batch,) = batches([3, 2, 4])
    cache = build(tmp_path, tagger(), [batch])
    (shard,) = cache.shards.values()
    return shard.path, seen(batch)[1], cache.read(seen(batch)[1])["logits"]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


ENTRY = layout(Full().parts).itemsize


@pytest.mark.parametrize("row", [0, 1])
def test_a_flipped_byte_of_a_record_is_told_and_mended(three, tmp_path, tagger, batches, build, row):
    path, keyed, logits = three
    flip(path.with_suffix(".data"), 16 * row + 5)
    cache = Cache(tmp_path)
    where = f"record {row}, 16 bytes from byte {16 * row}, of key {keyed.keys[row].hex()}"
    message = f"{path}.data is damaged: {where}, has another checksum"
    with pytest.raises(CacheError, match=f"^{re.escape(message)}; verify the cache, and build what is lost again$"):
        cache.read(keyed)
    assert cache.verify() == [message]
    assert cache.missing(keyed) == [row]
    some = Examples(keyed.keys[row : row + 1], keyed.spans[row : row + 1], keyed.length)
    with cache.writer(Full()) as writer:
        assert writer.put(keyed, {"logits": logits}) == 1
    for again in (cache, Cache(tmp_path)):
        again.refresh()
        assert torch.equal(again.read(keyed)["logits"], logits)
        assert torch.equal(again.read(some)["logits"], logits[row : row + 1])


def test_a_flipped_byte_of_the_last_record_is_told_at_once(three, tmp_path):
    path, keyed, _ = three
    flip(path.with_suffix(".data"), 47)
    cache = Cache(tmp_path)
    assert cache.missing(keyed) == [2]
    assert cache.wrong == cache.verify()
    assert f"{path}.data is damaged: record 2, 16 bytes from byte 32, of key" in cache.wrong[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 3 * ENTRY - 1), st.integers(0, 7))
def test_any_flipped_bit_of_an_index_costs_its_entry_alone(tmp_path_factory, place, bit):
    kind, folder = Full(), tmp_path_factory.mktemp("cache")
    cache = opened(folder, fingerprint(torch.nn.Linear(1, 1), kind.facts()))
    keyed = examples({"x": torch.arange(3)})
    with cache.writer(kind) as writer:
        writer.put(keyed, {"logits": torch.eye(3)})
    (path,) = folder.glob("*.index")
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    cache = Cache(folder)
    assert cache.missing(keyed) == [place // ENTRY]
    assert cache.wrong == [f"{path} is damaged: entry {place // ENTRY} has another checksum"]


@pytest.mark.parametrize("left", [0, 1, ENTRY - 1, ENTRY, ENTRY + 1, 3 * ENTRY - 1])
def test_a_truncated_index(three, tmp_path, left):
    path, keyed, logits = three
    file = path.with_suffix(".index")
    file.write_bytes(file.read_bytes()[:left])
    cache = Cache(tmp_path)
    whole = left // ENTRY
    assert cache.missing(keyed) == [*range(whole, 3)]
    assert (cache.cut, cache.wrong) == (left % ENTRY > 0, [])
    with cache.writer(Full()) as writer:
        assert writer.put(keyed, {"logits": logits}) == 3 - whole
    assert torch.equal(Cache(tmp_path).read(keyed)["logits"], logits)


def test_data_that_end_too_early(three, tmp_path):
    path, keyed, _ = three
    file = path.with_suffix(".data")
    file.write_bytes(file.read_bytes()[:31])
    cache = Cache(tmp_path)
    assert cache.missing(keyed) == [1, 2]
    assert cache.wrong == [f"{file} has 31 bytes, and record {row} is not whole in it" for row in (1, 2)]
    file.unlink()
    with pytest.raises(CacheError, match=f"^{re.escape(str(file))} cannot be read: No such file or directory$"):
        Cache(tmp_path)


def test_a_folder_that_has_no_cache(tmp_path, tagger, build):
    with pytest.raises(CacheError, match=r" is no cache: cache\.json cannot be read: No such file or directory$"):
        Cache(tmp_path)
    build(tmp_path, tagger(), [])
    path = tmp_path / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(CacheError, match=r" has format 9; this hookbrew reads 1$"):
        Cache(tmp_path)
    path.write_text("{")
    with pytest.raises(CacheError, match=r"cache\.json is damaged$"):
        Cache(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot be made: "):
        build(tmp_path / "file", tagger(), [])
