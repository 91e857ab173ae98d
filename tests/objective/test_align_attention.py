"""Losses on attention in an objective: what they count, that micro-batches add up, and which tensors are refused."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError, ObjectiveError
from hookbrew.objective import Objective
from hookbrew.objective.attended import require_attended, shown
from tests.offering import offering

CPU = torch.device("cpu")


class Heads(nn.Module):
    """Self-attention of H heads; `memory` keys more than there are tokens."""

    def __init__(self, width, heads, memory=0):
        super().__init__()
        self.inner, self.heads = nn.Linear(width, 3 * width), heads
        self.memory = nn.Parameter(torch.randn(2, 1, heads, memory, width // heads))

    def forward(self, hidden, mask):
        q, k, v = self.inner(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = (torch.cat([x, m.expand(len(x), -1, -1, -1)], 2) for x, m in zip((k, v), self.memory, strict=True))
        mask = nn.functional.pad(mask, (0, self.memory.shape[3]), value=1).bool()
        return nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2)


class Looker(nn.Module):
    """Embeds tokens, (B, L), lets them attend twice, and scores 3 classes for each."""

    def __init__(self, width=8, heads=2, memory=0):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.blocks = nn.ModuleList(Heads(width, heads, memory) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = hidden + block(hidden, attention_mask)
        return self.head(hidden)


@pytest.fixture
def made(pack):
    def make(student, teacher, *tables, known=pack):
        return Objective(student, teacher, [structure_loss(t.table, known) for t in tables])

    return make


@pytest.fixture
def measured(made):
    def make(student, teacher, batch, *tables, **known):
        objective = made(student, teacher, *tables, **known)
        with objective.attached():
            objective.measure(batch)
        return objective

    return make


def on(name, port="", **table):
    """A loss on the last attention of both."""
    return hb.loss(name, student=f"blocks[-1]{port}", teacher=f"blocks[-1]{port}", **table)


TABLES = [
    on("attention_mse", ":attn"),
    on("attention_mse", ":scores"),
    on("attention_mse_sum", ":attn"),
    on("attention_ce", ":scores"),
    on("attention_ce_mean", ":scores"),
    on("attention_kl", ":attn"),
    on("relation", ":q", heads=4),
    on("value_relation", ":v"),
    on("pkd"),
    on("at"),
    on("hidden_mse"),
]
COUNTED = [29, 29, 29, 9, 9, 9, 9, 9, 3, 9, 9]


def gradient(objective, batches):
    """The gradient of the loop's reduction, by hand: sums over everything that is valid in all batches."""
    objective.student.zero_grad()
    with objective.attached():
        counts = [objective.counts(b, len(b["labels"]), CPU) for b in batches]
        for batch, valid in zip(batches, counts, strict=True):
            objective.forward(batch)
            (objective.sums(batch, valid) / sum(counts)).sum().backward()
    return torch.cat([p.grad.flatten() for p in objective.student.parameters() if p.grad is not None])


def test_what_each_loss_counts(batches, measured):
    (batch,) = batches([4, 2, 3])
    objective = measured(Looker(), Looker(), batch, *TABLES)
    assert objective.counts(batch, 3, CPU).tolist() == COUNTED
    names = {29: "pairs", 9: "positions", 3: "samples"}
    assert [term.scope.counts for term in objective.terms] == [names[number] for number in COUNTED]


def test_a_sample_counts_with_any_token(batches, measured):
    (batch,) = batches([4, 2, 3])
    objective = measured(Looker(), Looker(), batch, on("pkd"))
    batch["attention_mask"][1] = 0
    assert objective.counts(batch, 3, CPU).tolist() == [2]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.table["type"] + table.table["student"][10:])
def test_micro_batches_have_the_gradient_of_one_batch(batches, measured, table):
    (whole,) = batches([7, 1, 4, 2, 6, 3])
    parts = [{k: v[a:b] for k, v in whole.items()} for a, b in ((0, 1), (1, 3), (3, 6))]
    objective = measured(Looker(8).double(), Looker(8).double(), whole, table)
    found = gradient(objective, [whole])
    assert found.abs().max() > 1e-6
    assert torch.allclose(found, gradient(objective, parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.table["type"] + table.table["student"][10:])
def test_padding_more_changes_nothing(batches, measured, table):
    (batch,) = batches([4, 2, 3])
    objective = measured(Looker(8).double(), Looker(8).double(), batch, table)
    wider = {k: nn.functional.pad(v, (0, 5)) if v.dim() == 2 else v for k, v in batch.items()}
    assert torch.allclose(gradient(objective, [batch]), gradient(objective, [wider]), rtol=0, atol=1e-12)


def test_without_a_mask_samples_of_one_length_weigh_alike(batches, measured):
    (whole,) = batches([4, 4, 4])
    parts = [{k: v[a:b] for k, v in whole.items()} for a, b in ((0, 1), (1, 3))]
    table = on("attention_mse", ":attn", mask=False)
    objective = measured(Looker(8).double(), Looker(8).double(), whole, table)
    assert objective.counts(whole, 3, CPU).tolist() == [3]
    assert torch.allclose(gradient(objective, [whole]), gradient(objective, parts), rtol=0, atol=1e-12)


def test_other_widths_and_heads(batches, measured):
    tables = [on("relation", ":k", heads=4), on("attention_ce_mean", ":scores"), on("sp"), on("rkd"), on("cka")]
    objective = measured(Looker(8, 2), Looker(12, 4), *batches([4, 2, 3]), *tables, on("pkt"), on("at"))
    assert len(objective.terms) == 7


def test_the_variance_of_vid_is_trained(batches, measured):
    (batch,) = batches([4, 2, 3])
    objective = measured(Looker(8), Looker(12), batch, on("vid", projection="linear"))
    shapes = [tuple(p.shape) for p in objective.extras.parameters()]
    assert shapes == [(12, 8), (12,), (1,)]
    gradient(objective, [batch])
    assert all(p.grad.count_nonzero() for p in objective.extras.parameters())


def message(call, kind=ConfigError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_each_kind_needs_selectors_of_its_own(made):
    tables = [hb.loss(name) for name in ("attention_mse", "attention_kl", "attention_ce", "relation", "pkd")]
    tap = "(`hookbrew taps` lists what there is)"
    last = 'student = "attention[-1]" and teacher = "attention[-1]"'
    assert message(lambda: made(Looker(), Looker(), *tables)).splitlines() == [
        f"losses[0]: loss 'attention_mse' compares attention: name them with {last} {tap}",
        f"losses[1]: loss 'attention_kl' compares attention probabilities: name them with {last} {tap}",
        "losses[2]: loss 'attention_ce' compares attention scores: name them with "
        f'student = "attention[-1]:scores" and teacher = "attention[-1]:scores" {tap}',
        "losses[3]: loss 'relation' compares queries, keys or values: name them with "
        f'student = "attention[-1]:v" and teacher = "attention[-1]:v" {tap}',
        "losses[4]: loss 'pkd' compares hidden tensors: name them with "
        f'student = "..." and teacher = "..." {tap}',
    ]  # fmt: skip


def test_a_projection_has_nothing_to_map(made):
    tables = [on("attention_mse", ":attn", projection="linear"), on("relation", ":q", projection="linear")]
    assert message(lambda: made(Looker(), Looker(), *tables)).splitlines() == [
        "losses[0]: projection: loss 'attention_mse' compares tokens with tokens, not features; leave this key out",
        "losses[1]: projection: loss 'relation' compares tokens with tokens, not features; leave this key out",
    ]


def test_ports_that_do_not_fit(batches, measured):
    (batch,) = batches([4, 2, 3])
    mixed = hb.loss("attention_mse", student="blocks[0]:scores", teacher="blocks[0]:attn")
    tables = [on("attention_kl", ":scores"), on("attention_ce", ":attn"), mixed, on("attention_mse"), on("relation")]
    assert message(lambda: measured(Looker(), Looker(), batch, *tables)).splitlines() == [
        "losses[0]: loss 'attention_kl' takes probabilities, and the student's values are scores; name the port "
        ':attn, as in student = "attention[-1]"',
        "losses[1]: loss 'attention_ce' takes scores, and the student's values are probabilities; name the port "
        ':scores, as in student = "attention[-1]:scores"',
        "losses[2]: the student's are scores and the teacher's are probabilities; give loss 'attention_mse' the same "
        "port on both sides, :attn or :scores",
        "losses[3]: loss 'attention_mse' compares attention, (batch, heads, queries, keys), and the student's tensor "
        'is (3, 4, 8); name one, as in student = "attention[-1]"',
        "losses[4]: loss 'relation' compares queries, keys or values, (batch, heads, tokens, features), and the "
        'student\'s tensor is (3, 4, 8); name one, as in student = "attention[-1]:v"',
    ]


def test_heads_that_differ(batches, measured):
    table = on("attention_mse", ":attn")
    assert message(lambda: measured(Looker(8, 2), Looker(8, 4), *batches([3, 2]), table)) == (
        "losses[0]: numbers of heads differ: 2 and 4; student (2, 2, 3, 3), teacher (2, 4, 3, 3); "
        "attention_mse_sum and attention_ce_mean merge the heads, relation cuts them anew"
    )


def test_keys_that_are_no_tokens_of_the_mask(batches, measured):
    (batch,) = batches([3, 2])
    student, teacher = Looker(memory=2), Looker(memory=2)
    assert message(lambda: measured(student, teacher, batch, on("attention_mse", ":attn"))) == (
        "losses[0]: the mask 'attention_mask' is (2, 3) and does not fit the student's (2, 2, 3, 5); name "
        'the right key with mask = "...", or write mask = false if every position counts'
    )
    measured(student, teacher, batch, on("attention_mse", ":attn", mask=False))


@pytest.mark.parametrize(
    ("takes", "teacher", "said"),
    [
        ("attention", (2, 2, 4, 4), "numbers of tokens; loss 'mine' compares token by token"),
        ("attention", (2, 2, 3, 4), "numbers of keys; loss 'mine' compares token by token"),
        ("relation", (1, 2, 3, 4), "batch sizes; loss 'mine' compares token by token"),
    ],
)
def test_tokens_that_differ(takes, teacher, said):
    tensors = torch.zeros(2, 2, 3, 3), torch.zeros(teacher)
    text = message(lambda: require_attended("mine", takes, *tensors), ObjectiveError)
    assert text == f"student (2, 2, 3, 3) and teacher {teacher} differ in their {said}"


def test_heads_and_widths_are_left_to_the_loss():
    require_attended("mine", "relation", torch.zeros(2, 2, 3, 4), torch.zeros(2, 3, 3, 8))
    require_attended("mine", "attention", torch.zeros(2, 2, 3, 3), torch.zeros(2, 3, 3, 3))


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ([0.25, 0.25, 0.5], "probabilities"),
        ([0.251, 0.252, 0.5], "probabilities"),
        ([0.0, 0.0, 1.0], "probabilities"),
        ([-0.1, 0.6, 0.5], "scores"),
        ([0.5, 0.2, -INFINITE], "scores"),
        ([2.0, 1.0, 0.0], "scores"),
        ([0.1, 0.2, 0.3], None),
        ([0.0, 0.0, 0.0], None),
        ([0.3, 0.3, float("nan")], None),
    ],
)
def test_what_values_show(row, kind):
    assert shown(torch.tensor([[[row]]])) == kind
    unseeing = [0.0, 0.0, 0.0]
    assert shown(torch.tensor([[[row, unseeing]]])) == kind


def gap(student, teacher, mask=None):
    return (student - teacher.detach()).square().mean()


def test_a_foreign_loss_counts_what_it_says(batches, measured):
    (batch,) = batches([4, 2, 3])
    for counts, number in (("pairs", 29), ("positions", 9), ("samples", 3), (None, 9)):
        known = offering(lambda _: gap, takes="attention", counts=counts)
        objective = measured(Looker(), Looker(), batch, on("mine", ":attn"), known=known)
        assert objective.counts(batch, 3, CPU).tolist() == [number]


def test_a_word_that_counts_nothing(made):
    known = offering(lambda _: gap, takes="attention", counts="pair")
    assert message(lambda: made(Looker(), Looker(), on("mine", ":attn"), known=known)) == (
        "losses[0]: loss 'mine' counts 'pair'; did you mean 'pairs'?"
    )


def test_queries_and_keys_of_a_teacher_are_gone_before_the_student_runs(made, batches):
    """Its attention is computed by then; they would be alive together with all that the student keeps for backward."""
    (batch,) = batches([3, 2])
    student, teacher = Looker(), Looker()
    objective = made(student, teacher, on("attention_mse", ":attn"))
    kept, alive = [], []
    with objective.attached():
        objective.measure(batch)
        inner = teacher.blocks[-1].inner  # one memory for queries, keys and values
        inner.register_forward_hook(lambda module, given, out: kept.append(StorageWeakRef(out.untyped_storage())))
        student.register_forward_pre_hook(lambda module, given: alive.append(not kept[-1].expired()))
        objective.forward(batch)
    assert alive == [False]
