"""Losses on large maps of attention, by tiles: the numbers of whole maps, and never more than the maps of a tile."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError, ObjectiveError
from hookbrew.objective import Names, Objective, seats, tile
from hookbrew.objective.attended import shown
from tests.offering import offering

SAMPLES, LENGTH, HEADS = 7, 24, 4
SAMPLE = HEADS * LENGTH**2 * 8
"""Bytes of the map of one sample, in float64."""
SAME = {"rtol": 1e-12, "atol": 1e-15}
PADDED, FULL = [24, 3, 17, 1, 0, 24, 9], [LENGTH] * SAMPLES
CPU = torch.device("cpu")


class Attention(nn.Module):
    """Self-attention, of which each key may serve several heads of queries."""

    def __init__(self, width, shared=1, kind="mask"):
        super().__init__()
        self.each, self.grouped, self.kind = width // HEADS, shared > 1, kind
        self.q, self.k, self.v = (nn.Linear(width, width // part) for part in (1, shared, shared))
        self.bias = nn.Parameter(torch.randn(1, HEADS, LENGTH, LENGTH)) if kind == "bias" else None

    def forward(self, hidden, mask):
        seen = mask[:, None, None].bool()
        q, k, v = (part(hidden).unflatten(-1, (-1, self.each)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.kind == "softmax":
            mixed = (q @ k.mT / self.each**0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ v
        elif self.kind == "causal":
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        else:
            if self.kind == "added":
                seen = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)
            if self.bias is not None:
                seen = self.bias.masked_fill(~seen, -torch.inf)
            mixed = functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=self.grouped)
        if self.kind == "written":
            q.detach().add_(1)
        return mixed.transpose(1, 2).flatten(2)


class Multihead(nn.Module):
    """The same by torch's own module."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.MultiheadAttention(width, HEADS, batch_first=True)

    def forward(self, hidden, mask):
        return self.inner(hidden, hidden, hidden, key_padding_mask=mask == 0, need_weights=False)[0]


class Reader(nn.Module):
    """Embeds tokens, (B, L), lets them attend twice, and scores 3 classes."""

    def __init__(self, width=8, *, make=Attention, remade=False, lost=False, **more):
        super().__init__()
        self.embed, self.remade, self.lost = nn.Embedding(20, width), remade, lost
        self.blocks = nn.ModuleList(make(width, **more) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.embed(input_ids)
        for block in self.blocks:
            if self.remade:
                hidden = hidden + checkpoint(block, hidden, attention_mask, use_reentrant=False)
            else:
                with torch.set_grad_enabled(torch.is_grad_enabled() and not self.lost):
                    mixed = block(hidden, attention_mask)
                hidden = hidden + mixed
        return self.head(hidden[:, 0])


def batch_of(lengths):
    mask = (torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(1, 20, mask.shape) * mask, "attention_mask": mask}


def on(name, port=":attn", **table):
    return hb.loss(name, student=f"blocks[1]{port}", teacher=f"blocks[1]{port}", **table)


TABLES = {
    "mse": on("attention_mse"),
    "mse of scores": on("attention_mse", ":scores"),
    "mse of sums": on("attention_mse_sum"),
    "ce": on("attention_ce", ":scores"),
    "ce of means": on("attention_ce_mean", ":scores"),
    "kl": on("attention_kl"),
    "without a mask": on("attention_kl", mask=False),
    "relation": on("relation", ":q", heads=HEADS),
    "value relation": on("value_relation", ":v"),
}


@pytest.fixture
def walks(monkeypatch):
    """How many samples each tile had that was computed; two fit into one, in float64."""
    monkeypatch.setattr(tile, "BUFFER", 2 * SAMPLE)
    seen, inner = [], tile.Walk.tile

    def watched(self, one, *rest):
        seen.append(one.samples.stop - one.samples.start)
        return inner(self, one, *rest)

    monkeypatch.setattr(tile.Walk, "tile", watched)
    return seen


@pytest.fixture
def measured(pack):
    def make(student, teacher, batch, *tables, known=pack, **names):
        made = Objective(student, teacher, [structure_loss(one.table, known) for one in tables], Names(**names))
        with made.attached():
            made.measure(batch)
        return made

    return make


def stepped(objective, *batches):
    """The loss of a step of some batches, and the gradients of the student."""
    objective.student.zero_grad()
    value = 0.0
    with objective.attached():
        counts = [objective.counts(one, len(one["input_ids"]), CPU) for one in batches]
        totals = sum(counts).clamp(min=1)
        for one, valid in zip(batches, counts, strict=True):
            objective.forward(one)
            if len(batches) == 1:
                loss = objective.weighed(one, len(one["input_ids"]), 0.3)[0]
            else:
                loss = objective.part(one, valid, totals, 0.3)[0]
            loss.backward()
            value = value + loss.detach()
    return value, [p.grad for p in objective.student.parameters()]


@pytest.fixture
def both(measured, monkeypatch, walks):
    """both(student, teacher, batches, ...): a step by tiles and one on whole maps agree; gives the tiles there were."""

    def make(student, teacher, batches, *tables, close=SAME, **known):
        found = []
        for size in (2 * SAMPLE, 2**60):
            monkeypatch.setattr(tile, "BUFFER", size)
            objective = measured(copy.deepcopy(student), teacher, batches[0], *tables, **known)
            walks.clear()
            found.append((*stepped(objective, *batches), sorted(walks)))
        (value, grads, tiles), (whole, expected, none) = found
        assert none == []
        torch.testing.assert_close((value, grads), (whole, expected), **close)
        assert any(grad is not None and grad.abs().max() > 1e-9 for grad in grads)
        return tiles

    return make


@pytest.mark.parametrize("lengths", [PADDED, FULL], ids=["padded", "full"])
@pytest.mark.parametrize("table", TABLES)
def test_the_numbers_are_those_of_whole_maps(both, table, lengths):
    tiles = both(Reader().double(), Reader(16).double(), [batch_of(lengths)], TABLES[table])
    assert tiles == [1, 2, 2, 2]


def test_the_numbers_are_those_of_the_formula(measured, walks):
    """sum_bhij (s - t)^2 m_bi m_bj / (H sum_b n_b^2), of maps that are written out."""
    student, teacher, batch = Reader().double(), Reader(16).double(), batch_of(PADDED)

    def attention(model):
        block, hidden = model.blocks[1], model.embed(batch["input_ids"])
        hidden = hidden + model.blocks[0](hidden, batch["attention_mask"])
        q, k = (part(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (block.q, block.k))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / block.each**0.5
        weights = scores.exp() * batch["attention_mask"][:, None, None]
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)

    value, grads = stepped(measured(student, teacher, batch, TABLES["mse"]), batch)
    assert walks
    pairs = batch["attention_mask"][:, None, :, None] * batch["attention_mask"][:, None, None, :]
    apart = (attention(student) - attention(teacher).detach()).square() * pairs
    whole = apart.sum() / (HEADS * sum(length**2 for length in PADDED))
    expected = torch.autograd.grad(whole, list(student.parameters()), allow_unused=True)
    torch.testing.assert_close((value, grads), (whole.detach(), list(expected)), **SAME)


@pytest.mark.parametrize("kind", ["causal", "added", "shared", "causal and shared", "multihead"])
@pytest.mark.parametrize("port", [":attn", ":scores"])
def test_kinds_of_attention(both, kind, port):
    more = {"make": Multihead} if kind == "multihead" else {"kind": kind.split(" ", maxsplit=1)[0]}
    more |= {"shared": 2} if "shared" in kind else {}
    student, teacher = (Reader(width, **more).double() for width in (8, 16))
    table = on("attention_mse", (".inner" if kind == "multihead" else "") + port)
    lengths = [max(length, 1) for length in PADDED]  # torch's own module has nan for a sample of padding alone
    assert both(student, teacher, [batch_of(lengths)], table) == [1, 2, 2, 2]


def test_layers_losses_and_micro_batches(both):
    """Two layers by one table, two losses on one layer, beside one that takes whole tensors; a step of two batches."""
    every = {"student": "blocks[*]:attn", "teacher": "blocks[*]:attn"}
    tables = [hb.loss("attention_kl", weight=3.0, **every), TABLES["mse"], on("hidden_mse", "")]
    batches = [batch_of(PADDED), batch_of([24, 5, 24, 8, 1])]
    tiles = both(Reader().double(), Reader().double(), batches, *tables)
    assert tiles == sorted([1, 2, 2, 2] * 3 + [1, 2, 2] * 3)


def test_a_remade_student(both):
    """Its queries and keys are those of the forward; backward makes their layer again."""
    assert both(Reader(remade=True).double(), Reader().double(), [batch_of(PADDED)], TABLES["mse"])


def test_autocast(measured, monkeypatch, walks):
    """Products of gradients are as exact as in a backward, which comes after it."""
    batch, student, found = batch_of(FULL), Reader(), []
    teacher = Reader(16)
    for size in (SAMPLE, 2**60):
        monkeypatch.setattr(tile, "BUFFER", size)
        objective = measured(student, teacher, batch, TABLES["mse"])
        with objective.attached():
            with torch.autocast("cpu", torch.bfloat16):
                objective.forward(batch)
                loss = objective.weighed(batch, SAMPLES, 0.0)[0]
            loss.backward()
        found.append([p.grad.clone() for p in student.blocks[1].q.parameters()])
        student.zero_grad()
    assert walks
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-12)


def test_small_parts_of_a_halfs_gradient(monkeypatch, measured, walks):
    """A scaler multiplies the loss so that they do not become 0."""
    monkeypatch.setattr(tile, "BUFFER", SAMPLE)
    batch, student, teacher, found = batch_of(FULL), Reader().half(), Reader(), []
    for size in (SAMPLE, 2**60):
        monkeypatch.setattr(tile, "BUFFER", size)
        objective = measured(student, teacher, batch, TABLES["mse"])
        with objective.attached():
            objective.forward(batch)
            (objective.weighed(batch, SAMPLES, 0.0)[0] * 2.0**16).backward()
        found.append([p.grad.float() for p in student.blocks[1].q.parameters()])
        student.zero_grad()
    assert walks
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-4)
    assert found[0][0].abs().max() > 1e-2


def test_a_teachers_map_that_is_there(measured, walks):
    """As one of a cache is."""
    batch, student, teacher = batch_of(PADDED), Reader().double(), Reader(16).double()
    value, grads = stepped(measured(student, teacher, batch, TABLES["kl"]), batch)
    objective = measured(student, teacher, batch, TABLES["kl"])
    (seat,) = seats(objective).values()
    with objective.attached():
        seat.run(batch)
        kept = {path: tensor.clone() for path, tensor in seat.seen().items()}
    assert [tensor.shape for tensor in kept.values()] == [(SAMPLES, HEADS, LENGTH, LENGTH)]
    objective.ask = lambda who, given: seat.place(kept)
    walks.clear()
    torch.testing.assert_close(stepped(objective, batch), (value, grads), **SAME)
    assert sorted(walks) == [1, 2, 2, 2]


class Alive(TorchDispatchMode):
    """The largest tensor that operations make, and how much all that are as large as a sample's map take together."""

    def __init__(self):
        super().__init__()
        self.there, self.largest, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= SAMPLE:
                storage = tensor.untyped_storage()
                self.largest = max(self.largest, storage.nbytes())
                self.there[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.there = {key: (ref, size) for key, (ref, size) in self.there.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.there.values()))
        return output


@pytest.mark.parametrize("table", TABLES)
def test_no_map_is_larger_than_a_tiles(measured, walks, table):
    """Neither in the look at the first batch nor in a step; and what is there does not grow with the batch."""
    student, teacher, most = Reader(kind="causal").double(), Reader(kind="causal").double(), []
    for samples in (6, 10):
        batch = batch_of([LENGTH] * samples)
        with Alive() as alive:
            stepped(measured(student, teacher, batch, TABLES[table]), batch)
        assert 0 < alive.largest <= 2 * SAMPLE
        most.append(alive.most)
    assert most[0] == most[1]


def test_the_teachers_queries_and_keys_wait_for_the_student(measured, walks):
    student, teacher, batch = Reader().double(), Reader().double(), batch_of(FULL)
    objective = measured(student, teacher, batch, TABLES["mse"])
    kept, waiting = [], []
    teacher.blocks[1].k.register_forward_hook(lambda _, given, out: kept.append(StorageWeakRef(out.untyped_storage())))
    student.register_forward_pre_hook(lambda _, given: waiting.append(not kept[-1].expired()))
    with objective.attached():
        objective.forward(batch)
        loss, *_ = objective.weighed(batch, SAMPLES, 0.0)
        assert loss.requires_grad
        assert waiting == [True]
        assert kept[-1].expired()


def test_one_sample_that_stands_for_all():
    """A look at its values makes nothing of the size of all."""
    one = torch.rand(1, HEADS, LENGTH, LENGTH).softmax(-1)
    with Alive() as alive:
        assert shown(one.expand(100, -1, -1, -1)) == "probabilities"
    assert alive.largest == 0


def test_small_maps_are_whole(measured, monkeypatch, walks):
    """Those of two tiles are."""
    batch = batch_of([LENGTH] * 4)
    for size, some in ((2 * SAMPLE, False), (2 * SAMPLE - 1, True)):
        monkeypatch.setattr(tile, "BUFFER", size)
        walks.clear()
        stepped(measured(Reader().double(), Reader().double(), batch, TABLES["mse"]), batch)
        assert bool(walks) == some


def gap(scale):
    def mean(student, teacher, mask):
        pairs = (mask[:, None, :, None] & mask[:, None, None, :]).to(student.dtype)
        return scale * ((student - teacher.detach()).square() * pairs).sum() / pairs.sum().clamp(min=1) / HEADS

    return mean


def test_a_foreign_loss_that_wants_a_mask_and_has_a_schedule(both):
    known = offering(gap, takes="attention", counts="pairs")
    table = on("mine", scale=hb.schedule("linear", base=2.0))
    for lengths in (PADDED, FULL):
        assert both(Reader().double(), Reader().double(), [batch_of(lengths)], table, known=known) == [1, 2, 2, 2]


class Learned(nn.Module):
    def forward(self, student, teacher, mask):
        return gap(1.0)(student, teacher, mask)


def numbered(scale):
    return lambda student, teacher, mask, index: gap(scale)(student, teacher, mask)


WHOLE = {
    "counts samples": (gap, {"counts": "samples"}),
    "says not what": (gap, {}),
    "compares samples": (gap, {"counts": "pairs", "exempt": {"micro_batches": "it compares samples"}}),
    "learns": (lambda scale: Learned(), {"counts": "pairs"}),
    "remembers": (numbered, {"counts": "pairs"}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_losses_that_need_all_samples_together(measured, walks, name):
    function, more = WHOLE[name]
    batch = {**batch_of(FULL), "index": torch.arange(SAMPLES)}
    known = offering(function, takes="attention", **more)
    stepped(measured(Reader().double(), Reader().double(), batch, on("mine"), known=known), batch)
    assert walks == []


@pytest.mark.parametrize("kind", ["softmax", "bias"])
def test_maps_that_the_model_makes_and_masks_that_learn(measured, walks, kind):
    student, teacher = Reader(kind=kind).double(), Reader().double()
    stepped(measured(student, teacher, batch_of(FULL), TABLES["mse"]), batch_of(FULL))
    assert walks == []
    assert kind != "bias" or student.blocks[1].bias.grad.any()


def test_compiled_models(measured, walks):
    batch = batch_of(FULL)
    student = Reader().double()
    student.embed = torch.compile(student.embed, backend="eager")
    stepped(measured(student, Reader().double(), batch, TABLES["mse"]), batch)
    assert walks == []


def test_a_wrapper_that_averages_gradients(measured, walks):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        student = DistributedDataParallel(Reader().double())
        stepped(measured(student, Reader().double(), batch_of(FULL), TABLES["mse"]), batch_of(FULL))
    finally:
        distributed.destroy_process_group()
    assert walks == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"kind": "written"}, "was changed in place after it was seen"),
        ({"lost": True}, "computed the tensor of tap .* without a gradient"),
    ],
)
def test_what_cannot_be_read_whole_cannot_by_tiles(measured, walks, more, said):
    with pytest.raises(ConfigError, match=said):
        measured(Reader(**more).double(), Reader().double(), batch_of(FULL), TABLES["mse"])


def test_ports_that_do_not_fit(measured, walks):
    with pytest.raises(ConfigError, match="takes probabilities, and the student's values are scores"):
        measured(Reader().double(), Reader().double(), batch_of(FULL), on("attention_kl", ":scores"))


def test_what_a_loss_returns(measured, walks):
    known = offering(lambda scale: lambda student, mask: student.mean((1, 2, 3)), takes="attention", counts="pairs")
    with pytest.raises(ConfigError, match=r"loss 'mine' returned a tensor \(1,\); expected a scalar tensor"):
        measured(Reader().double(), None, batch_of(FULL), hb.loss("mine", student="blocks[1]:attn"), known=known)
    known = offering(lambda scale: lambda student, mask: student.detach().mean(), takes="attention", counts="pairs")
    with pytest.raises(ConfigError, match="reaches no trained parameter"):
        measured(Reader().double(), None, batch_of(FULL), hb.loss("mine", student="blocks[1]:attn"), known=known)


def test_relations_of_more_heads_than_the_model_has(both):
    batch, student, teacher = batch_of(PADDED), Reader().double(), Reader(16).double()
    assert both(student, teacher, [batch], on("relation", ":k", heads=2 * HEADS)) == [1] * SAMPLES


def test_a_batch_of_padding(measured, walks):
    """Its mean is 0, and so is its gradient."""
    batch = batch_of([1] * SAMPLES)
    objective = measured(Reader(kind="causal").double(), Reader(kind="causal").double(), batch, TABLES["mse"])
    value, grads = stepped(objective, {**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])})
    assert walks
    assert value == 0
    assert not any(grad is not None and grad.any() for grad in grads)


def test_a_frozen_part(both):
    """Keys alone are trained."""
    student = Reader().double().requires_grad_(requires_grad=False)
    student.blocks[1].k.requires_grad_()
    assert both(student, Reader(16).double(), [batch_of(PADDED)], TABLES["mse"])


def test_derivatives(measured, walks):
    """Two backwards through one graph, none where nobody learns, and no second derivative."""
    student, batch = Reader().double(), batch_of(PADDED)
    objective = measured(student, Reader().double(), batch, TABLES["mse"])
    with objective.attached():
        with torch.no_grad():
            objective.forward(batch)
            quiet = objective.means(batch)["attention_mse"]
        objective.forward(batch)
        loss = objective.means(batch)["attention_mse"]
        torch.testing.assert_close(loss.detach(), quiet, **SAME)
        assert not quiet.requires_grad
        weight = student.blocks[1].q.weight
        (one,) = torch.autograd.grad(loss, weight, retain_graph=True)
        (two,) = torch.autograd.grad(2 * loss, weight, create_graph=True)
        torch.testing.assert_close(2 * one, two, **SAME)
        with pytest.raises(ObjectiveError, match="a loss on large maps of attention has no second derivatives"):
            two.sum().backward()
