"""Losses in chunks, from hidden states and heads: the gradients of the dense ones, and forwards that end before."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError
from hookbrew.objective import Names, Objective, plan

CLASSES = 40
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def gpt2(width, **more):
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=CLASSES, bos_token_id=0, eos_token_id=0, **sizes, **none, **more))


def llama(width, **more):
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=CLASSES, max_position_embeddings=16, **sizes, **more))


def bert(width, **more):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(vocab_size=CLASSES, max_position_embeddings=16, **sizes, **none, **more))


MODELS = {
    "gpt2": (gpt2, {}, True, "lm_head"),
    "gpt2, untied": (gpt2, {"tie_word_embeddings": False}, True, "lm_head"),
    "llama": (llama, {}, True, "lm_head"),
    "llama, tied": (llama, {"tie_word_embeddings": True}, True, "lm_head"),
    "bert": (bert, {}, False, "cls.predictions.decoder"),
}
"""A model of some width, whether its logits are of the next token, and its head; that of bert has a bias."""
TABLES = {
    "one": [hb.loss("kl", temperature=2)],
    "each": [
        hb.loss(name, weight=0.1 + place) for place, name in enumerate(["kl", "kd_ce", "rkl", "jsd", "skl", "srkl"])
    ],
    "labels": [hb.loss("ce")],
    "both": [hb.loss("kl", weight=0.7, temperature=3), hb.loss("ce", weight=0.3)],
    "scheduled": [
        hb.loss("kl", weight=hb.schedule("linear_decay"), temperature=hb.schedule("cosine", base=4.0, end=0.5)),
        hb.loss("ce", weight=hb.schedule("linear", base=0.5)),
    ],
    "beside hidden states": [
        hb.loss("jsd", beta=0.3),
        hb.loss("hidden_mse", student="hidden[-1]", teacher="hidden[-1]", projection="linear"),
        hb.loss("ce", mask=False, name="all labels"),
    ],
}


@pytest.fixture
def batch():
    """Texts of several lengths, of whose tokens some have no label."""
    ids = torch.randint(1, CLASSES, (4, 7))
    mask = (torch.arange(7)[None] < torch.tensor([7, 4, 6, 1])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill((mask == 0) | (ids % 5 == 0), -100)}


@pytest.fixture
def measured(pack, batch):
    """measured(student, teacher, tables, ...): an objective that has seen the batch."""

    def make(student, teacher, tables, given=batch, *, chunked=True, merge=None, **names):
        losses = [structure_loss(table.table, pack) for table in tables]
        made = Objective(student, teacher, losses, Names(**names))
        torch.manual_seed(0)  # of projections
        with made.attached():
            made.measure(given, chunked=chunked)
        return made

    return make


def stepped(made, batches, progress):
    """The loss, sums and gradients of a step: of one batch, or of parts of it."""
    trained = [*made.student.parameters(), *made.extras.parameters()]
    for parameter in trained:
        parameter.grad = None
    with made.attached():
        if len(batches) == 1:
            made.forward(batches[0])
            loss, means, counts = made.weighed(batches[0], len(batches[0]["labels"]), progress)
            counts = torch.tensor([float(count) for count in counts])
            sums = means * counts
            loss.backward()
        else:
            counts = [made.counts(b, len(b["labels"]), torch.device("cpu")) for b in batches]
            totals, loss, sums = sum(counts).clamp(min=1), 0.0, 0.0
            for part, valid in zip(batches, counts, strict=True):
                made.forward(part)
                value, found = made.part(part, valid, totals, progress)
                value.backward()
                loss, sums = loss + value.detach(), sums + found * valid
            counts = sum(counts)
    return loss.detach(), sums, counts, [p.grad for p in trained]


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradients_are_those_of_the_whole_logits(measured, batch, name, tables, parts):
    make, options, causal, head = MODELS[name]
    teacher, student = make(16, **options).double(), make(8, **options).double()
    cuts = [{key: value[start::parts] for key, value in batch.items()} for start in range(parts)]
    found = []
    for chunked in (False, True):
        own = copy.deepcopy(student)
        objective = measured(own, teacher, TABLES[tables], chunked=chunked, causal=causal)
        found.append(stepped(objective, cuts, 0.3))
    torch.testing.assert_close(found[1], found[0], **CLOSE)
    taught = {} if tables == "labels" else {"teacher": f"{head}:in"}
    assert objective.stops == {"student": f"{head}:in", **taught}


def test_forwards_of_a_training_end_before_the_head_and_those_of_an_evaluation_do_not(measured, batch):
    teacher, student = gpt2(16), gpt2(8)
    objective = measured(student, teacher, TABLES["both"], causal=True)
    whole = measured(student, teacher, TABLES["both"], causal=True, chunked=False)
    seen = {"student": [], "teacher": []}
    for name, model in (("student", student), ("teacher", teacher)):
        model.lm_head.register_forward_hook(lambda _module, _given, output, name=name: seen[name].append(output.shape))
    with objective.attached(), whole.attached():
        for _ in range(2):
            objective.forward(batch)
            assert objective.outputs == (None, None)
            objective.weighed(batch, 4, 0.0)[0].backward()
            assert seen == {"student": [], "teacher": []}
            torch.testing.assert_close(objective.predict(batch), whole.predict(batch), rtol=0, atol=0)
            assert seen.pop("student") == [(4, 7, CLASSES)] * 2
            seen["student"] = []


def test_not_even_the_first_batch_has_whole_logits(pack, batch):
    teacher, student, shapes = gpt2(16), gpt2(8), set()
    tables = [hb.loss("kl"), hb.loss("hidden_mse", student="hidden[1]", teacher="hidden[1]", projection="linear")]
    made = Objective(student, teacher, [structure_loss(table.table, pack) for table in tables])
    linear = nn.functional.linear

    def noted(*given):
        output = linear(*given)
        shapes.add(tuple(output.shape))
        return output

    nn.functional.linear = noted
    try:
        with made.attached():
            made.measure(batch, chunked=True)
            made.forward(batch)
    finally:
        nn.functional.linear = linear
    assert (1, 7, CLASSES) in shapes  # a sample, in which the heads are looked for
    assert (4, 7, CLASSES) not in shapes


def test_means_have_gradients_of_their_own(measured, batch):
    teacher, student = gpt2(16).double(), gpt2(8).double()
    found = []
    for chunked in (False, True):
        made = measured(student, teacher, TABLES["both"], causal=True, chunked=chunked)
        with made.attached():
            made.forward(batch)
            means = made.means(batch)
            found.append(
                [torch.autograd.grad(mean, [*student.parameters()], retain_graph=True) for mean in means.values()]
            )
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_what_several_losses_share_is_computed_once(measured, batch, monkeypatch):
    from hookbrew_plugins.losses import chunked as walks

    calls = []
    applied = walks.Walk.apply
    monkeypatch.setattr(walks.Walk, "apply", lambda *given: calls.append(len(given[-1].terms)) or applied(*given))
    made = measured(gpt2(8), gpt2(16), TABLES["beside hidden states"], causal=True)
    calls.clear()
    stepped(made, [batch], 0.0)
    assert calls == [1, 1]  # one of them obeys another mask
    made = measured(gpt2(8), gpt2(16), TABLES["both"], causal=True)
    calls.clear()
    stepped(made, [batch], 0.0)
    assert calls == [2]


def test_a_padded_vocabulary_is_cut_off(measured, batch):
    teacher = llama(16).double()
    student = LlamaForCausalLM(LlamaConfig(**{**llama(8).config.to_dict(), "vocab_size": CLASSES + 8})).double()
    found = []
    for chunked in (False, True):
        made = measured(student, teacher, TABLES["both"], causal=True, classes=CLASSES, chunked=chunked)
        found.append(stepped(made, [batch], 0.0))
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_soft_labels_take_the_whole_logits(measured, batch):
    student, teacher, found = gpt2(8).double(), gpt2(16).double(), []
    soft = nn.functional.one_hot(batch["labels"].clamp(min=0), CLASSES).double() * (batch["labels"] >= 0)[..., None]
    for chunked in (False, True):
        made = measured(student, teacher, TABLES["both"], causal=True, chunked=chunked)
        found.append(stepped(made, [{**batch, "labels": 0.9 * soft}], 0.0))
    torch.testing.assert_close(found[1], found[0], **CLOSE)


class Capped(nn.Module):
    """A model whose logits are bounded after their head."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return {"logits": self.model(input_ids, attention_mask=attention_mask).logits.tanh()}


def adapted(model):
    """A model with an adapter beside its head that does nothing yet."""

    class Adapter(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.down = inner, nn.Linear(inner.in_features, CLASSES)
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

        def forward(self, hidden):
            return self.inner(hidden) + self.down(hidden)

    model.lm_head = Adapter(model.lm_head)
    return model


def hooked(model):
    model.lm_head.register_forward_hook(lambda _module, _given, output: output)
    return model


BETWEEN = "a softcap, a scale, an adapter, a change of type or a hook lies between"


@pytest.mark.parametrize("tables", ["both", "each"])
def test_autocast(measured, batch, tables):
    student, teacher, found = gpt2(8), gpt2(16), []
    for chunked in (False, True):
        made = measured(student, teacher, TABLES[tables], causal=True, chunked=chunked)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(stepped(made, [batch], 0.0))
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("change", [Capped, adapted, hooked])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_heads_that_are_no_plain_layer_are_refused(measured, change, side):
    models = {"student": gpt2(8), "teacher": gpt2(16)}
    models[side] = change(models[side])
    with pytest.raises(ConfigError) as caught:
        measured(models["student"], models["teacher"], TABLES["one"])
    what = f"the {side}'s 'logits' is not the output of one plain Linear"
    assert str(caught.value) == f"losses[0]: train.chunked: {what}: {BETWEEN}"


def test_losses_that_need_whole_logits_are_refused(measured, batch):
    tables = [
        hb.loss("kl"),
        hb.loss("dkd"),
        hb.loss("kl", standardize=True),
        hb.loss("ce", label_smoothing=0.1),
        hb.loss("kl", student=["logits"], teacher=["logits"]),
    ]
    with pytest.raises(ConfigError) as caught:
        measured(gpt2(8), gpt2(16), tables, causal=True)
    assert str(caught.value) == "\n".join(
        [
            "losses[1]: train.chunked: loss 'dkd' has no chunked form, or none with these options",
            "losses[2]: train.chunked: loss 'kl' has no chunked form, or none with these options",
            "losses[3]: train.chunked: loss 'ce' has no chunked form, or none with these options",
            "losses[4]: train.chunked: loss 'kl' compares lists of logits",
        ]
    )


def test_by_size(measured, monkeypatch, batch):
    student, teacher = gpt2(8), gpt2(16)
    assert not measured(student, teacher, TABLES["one"], chunked="auto").plan.heads
    monkeypatch.setattr(plan, "LARGE", 4 * 7 * CLASSES * 4 * plan.COPIES)
    assert not measured(student, teacher, TABLES["one"], chunked="auto").plan.heads
    monkeypatch.setattr(plan, "LARGE", plan.LARGE - 1)
    assert measured(student, teacher, TABLES["one"], chunked="auto").plan.heads
    made = measured(student, teacher, [hb.loss("kl"), hb.loss("dkd")], chunked="auto", causal=True)
    assert not made.plan.heads
    assert made.plan.note == "losses[1]: loss 'dkd' has no chunked form, or none with these options"


class Pairs(nn.Module):
    """A model of pairs of samples."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        pairs = input_ids.view(-1, 2, 7)
        return {"logits": self.model(pairs.flatten(0, 1), attention_mask=attention_mask).logits}


def test_a_model_that_does_not_run_on_one_sample(measured, monkeypatch):
    monkeypatch.setattr(plan, "LARGE", 1)
    why = "the student does not run on one sample of a batch: RuntimeError: shape '[-1, 2, 7]' is invalid for input "
    made = measured(Pairs(gpt2(8)), gpt2(16), TABLES["one"], chunked="auto")
    assert not made.plan.heads
    assert made.plan.note == f"losses[0]: {why}of size 7"
    with pytest.raises(ConfigError) as caught:
        measured(Pairs(gpt2(8)), gpt2(16), TABLES["one"])
    assert str(caught.value) == f"losses[0]: train.chunked: {why}of size 7"


def test_a_later_measure_decides_anew(measured, batch):
    made = measured(gpt2(8).double(), gpt2(16).double(), TABLES["both"], causal=True)
    chunks = stepped(made, [batch], 0.0)
    with made.attached():
        made.measure(batch, chunked=False)
    assert made.stops == {}
    torch.testing.assert_close(stepped(made, [batch], 0.0), chunks, **CLOSE)


def fitted(pack, batch, **options):
    """A student after a training that accumulates and evaluates, and what the evaluations saw."""
    torch.manual_seed(0)
    teacher, student, seen = gpt2(16).double(), gpt2(8).double(), []

    class Watch:
        def eval_batch_end(self, state):
            seen.append(state.logits.detach())

    run = hb.Distillation(teacher, student, TABLES["scheduled"], catalogue=pack, causal=True)
    parts = [{key: value[rows] for key, value in batch.items()} for rows in ([0, 1], [2], [3, 0], [1, 2])]
    run.fit(
        parts, epochs=2, accumulate=2, clip_grad_norm=0.1, evaluate=parts[:1], evaluate_every=2, callbacks=[Watch()],
        optimizer=torch.optim.SGD(student.parameters(), 0.5), **options
    )  # fmt: skip
    return run, [*student.parameters(), *seen]


def test_a_training_comes_to_the_same_student(pack, batch):
    _, whole = fitted(pack, batch, chunked=False)
    run, chunks = fitted(pack, batch, chunked=True)
    assert run.objective.stops == {"student": "lm_head:in", "teacher": "lm_head:in"}
    torch.testing.assert_close(chunks, whole, **CLOSE)


def test_the_key_of_a_training_is_told_apart(pack, batch):
    with pytest.raises(ConfigError, match="fit: chunked: expected true or false or the string 'auto'"):
        fitted(pack, batch, chunked="always")
