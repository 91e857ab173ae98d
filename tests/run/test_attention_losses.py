"""Losses on the attention of real models, by aliases: trained, checked from a file, and repeated by hand."""

import json
import sys
import textwrap

import pytest
import torch

import hookbrew as hb

MODULE = """
import torch
import transformers as t


def bert(layers, heads=2, width=16):
    config = t.BertConfig(
        vocab_size=64, hidden_size=width, num_attention_heads=heads, intermediate_size=24, num_hidden_layers=layers,
        max_position_embeddings=32, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    return t.BertForSequenceClassification(config)


def gpt2(layers):
    config = t.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=layers, n_head=2, num_labels=3,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )
    return t.GPT2ForSequenceClassification(config)


def llama(layers):
    config = t.LlamaConfig(
        vocab_size=64, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
        num_hidden_layers=layers, max_position_embeddings=32, num_labels=3, pad_token_id=0,
    )
    return t.LlamaForSequenceClassification(config)


def samples():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 60, (n,), generator=generator) for n in (5, 7, 4, 6)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": int(i[0]) % 3} for i in ids]
"""

CONFIG = """\
output = "runs/attention"
pythonpath = ["."]
teacher = { factory = "berts:bert", layers = 4, heads = 4, width = 32 }
student = { factory = "berts:bert", layers = 2, heads = 4 }
train = { steps = 4, accumulate = 2, device = "cpu" }

[data]
train = { factory = "berts:samples" }
batch_size = 2
pad = { input_ids = 0, attention_mask = 0 }

[[losses]]
type = "attention_mse"
student = "attention[-1]"
teacher = "attention[-1]"

[[losses]]
type = "attention_ce_mean"
student = "attention[:]:scores"
teacher = "attention[1::2]:scores"

[[losses]]
type = "relation"
heads = 8
student = "attention[-1]:q"
teacher = "attention[-1]:q"

[[losses]]
type = "pkd"
student = "hidden[-1]"
teacher = "hidden[-1]"
projection = "linear"
"""

NAMES = ("attention_mse", "attention_ce_mean/0", "attention_ce_mean/1", "relation", "pkd")
SELF = "bert.encoder.layer.{}.attention.self"


@pytest.fixture
def berts(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    (tmp_path / "berts.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "distill.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import berts

    yield berts
    sys.modules.pop("berts", None)


@pytest.mark.usefixtures("berts")
def test_check_says_what_is_counted(hookbrew):
    done = hookbrew("check", "distill.toml")
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.stdout.splitlines()]
    pairs = [
        ("attention_mse", 1, 3, "attn", "pairs"),
        ("attention_ce_mean/0", 0, 1, "scores", "positions"),
        ("attention_ce_mean/1", 1, 3, "scores", "positions"),
        ("relation", 1, 3, "q", "positions"),
    ]
    for name, ours, theirs, port, counts in pairs:
        sides = f"student {SELF.format(ours)}:{port} ~ teacher {SELF.format(theirs)}:{port}"
        assert f"{name}: {sides}, a mean over {counts}" in lines
    assert (
        "pkd: student bert.encoder.layer.1 ~ teacher bert.encoder.layer.3, a mean over samples, Linear projection"
        in lines
    )


@pytest.mark.usefixtures("berts")
def test_run_trains_on_attention(tmp_path, hookbrew):
    done = hookbrew("run", "distill.toml")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "runs/attention/metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row if name.startswith("loss/")}
    assert names == {f"loss/{name}" for name in NAMES}


def padded(samples):
    """One batch of them."""
    rows = {key: [sample[key] for sample in samples] for key in samples[0]}
    labels = torch.tensor(rows.pop("labels"))
    return {key: torch.nn.utils.rnn.pad_sequence(row, batch_first=True) for key, row in rows.items()} | {
        "labels": labels
    }


def by_hand(berts, teacher, student, batch, steps):
    """TextBrewer's formula on what the models themselves call their attention."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    mask = batch["attention_mask"].float()
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}
    for model in (teacher, student):
        model.set_attn_implementation("eager")
    for _ in range(steps):
        ours = student(**given, output_attentions=True).attentions[-1]
        with torch.no_grad():
            theirs = teacher.eval()(**given, output_attentions=True).attentions[-1]
        cells = torch.einsum("bhij,bi,bj->", (ours - theirs) ** 2, mask, mask)
        optimizer.zero_grad()
        (cells / (ours.shape[1] * (mask.sum(1) ** 2).sum())).backward()
        optimizer.step()


def test_fit_is_the_formula_on_the_attention_of_the_model(berts):
    batch = padded(berts.samples())
    torch.manual_seed(1)
    teacher, student = berts.bert(4, width=32), berts.bert(2)
    twin = berts.bert(2)
    twin.load_state_dict(student.state_dict())
    start = {name: value.clone() for name, value in student.state_dict().items()}
    loss = hb.loss("attention_mse", student="attention[-1]", teacher="attention[-1]")
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    hb.Distillation(teacher, student, [loss]).fit([batch], steps=3, optimizer=optimizer, clip_grad_norm=None)
    by_hand(berts, teacher, twin, batch, 3)
    moved = [name for name, value in student.state_dict().items() if not torch.equal(value, start[name])]
    assert SELF.format(1) + ".query.weight" in moved
    for name, value in twin.state_dict().items():
        assert torch.allclose(student.state_dict()[name], value, atol=1e-6), name


def last(name, port="", **more):
    """A loss on the last attention of both."""
    return hb.loss(name, student=f"attention[-1]{port}", teacher=f"attention[-1]{port}", **more)


TABLES = [
    last("attention_mse"),
    last("attention_mse", ":scores"),
    last("attention_mse_sum"),
    last("attention_ce", ":scores"),
    last("attention_ce_mean", ":scores"),
    last("attention_kl"),
    last("relation", ":q", heads=4),
    last("relation", ":k", heads=4),
    last("value_relation", ":v"),
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_losses_do_not_depend_on_how_attention_is_computed(berts, family, side):
    batch = padded(berts.samples())
    if side == "left":
        batch = {key: value.flip(1) if value.dim() > 1 else value for key, value in batch.items()}
    teacher, student = (getattr(berts, family)(layers) for layers in (3, 2))
    for parameter in (*teacher.parameters(), *student.parameters()):
        parameter.data *= 10  # fresh models look at all tokens alike
    found = []
    for implementation in ("sdpa", "eager"):
        for model in (teacher, student):
            model.set_attn_implementation(implementation)
        objective = hb.Distillation(teacher, student, TABLES).objective
        with objective.attached():
            objective.measure(batch)
            objective.forward(batch)
            means = objective.means(batch)
        for mean in means.values():
            gradients = torch.autograd.grad(mean, student.parameters(), retain_graph=True, allow_unused=True)
            assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
        found.append(torch.stack([*means.values()]).detach())
    assert (found[0] > 1e-3).all()
    assert torch.allclose(*found, rtol=1e-3)
