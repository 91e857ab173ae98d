"""BERT-of-Theseus: which layers run, what is trained of them, and that nothing of it is left."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForTokenClassification,
)

import hookbrew as hb
from hookbrew.errors import CallbackError, ConfigError, SelectorError
from tests.pack import ranks_theseus

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
LAYERS = "bert.encoder.layer[*]"
STEPS = 12


def bert(depth=4, **options):
    config = BertConfig(**{**SIZES, **options}, num_hidden_layers=depth, num_labels=3, max_position_embeddings=12)
    return BertForSequenceClassification(config)


def born(teacher, keep):
    """A student with some of the teacher's layers, and all else of it."""
    torch.manual_seed(1)
    student = type(teacher)(copy.deepcopy(teacher.config))
    student.load_state_dict(teacher.state_dict())
    student.bert.encoder.layer = nn.ModuleList(copy.deepcopy(teacher.bert.encoder.layer[i]) for i in keep)
    student.config.num_hidden_layers = len(keep)
    return student


@pytest.fixture
def models():
    teacher = bert()
    return teacher, born(teacher, [0, 2])


def data(count=3, rows=4):
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.randint(1, 30, (rows, 6), generator=generator)
        labels = torch.randint(0, 3, (rows,), generator=generator)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def theseus(**options):
    return hb.callback("theseus", **{"student": LAYERS, "teacher": LAYERS, **options})


class Watch:
    """What ran in each forward of training, what moved in each step, and the rates that were told."""

    def __init__(self, models=None):
        self.ran, self.moved, self.rates, self.hooks = {}, {}, {}, []
        self.step, self.training = 0, False
        for model, name in zip(models or (), ("teacher", "student"), strict=False):
            for place, layer in enumerate(model.bert.encoder.layer):
                self.hooks.append(layer.register_forward_hook(self._note(model, f"{name}.{place}")))

    def _note(self, model, name):
        def hook(module, args, output):
            if self.step and torch.is_grad_enabled():
                self.ran.setdefault(self.step, []).append(name)

        return hook

    def step_start(self, state):
        self.step = state.step
        self.before = {name: p.detach().clone() for name, p in state.student.named_parameters()}

    def step_end(self, state):
        now = state.student.named_parameters()
        self.moved[state.step] = {name for name, p in now if not torch.equal(p, self.before[name])}

    def log(self, state):
        if "theseus/rate" in state.record:
            self.rates[state.step] = state.record["theseus/rate"]

    def close(self, state):
        for hook in self.hooks:
            hook.remove()


def fit(models, *callbacks, steps=STEPS, losses=None, lr=0.05, **arguments):
    """Train by AdamW, which decays whatever has a gradient, zero or not."""
    teacher, student = models
    torch.manual_seed(3)
    run = hb.Distillation(teacher, student, losses or [hb.loss("ce")])
    optimizer = arguments.pop("optimizer", None) or torch.optim.AdamW(student.parameters(), lr, weight_decay=0.1)
    return run.fit(data(), steps=steps, optimizer=optimizer, callbacks=[*callbacks], log_every=1, **arguments)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def own(watch):
    """For each step which of the student's layers ran."""
    return {step: [f"teacher.{2 * i}" not in ran for i in range(2)] for step, ran in watch.ran.items()}


def inside(name):
    return name.startswith("bert.encoder.layer.")


def test_at_rate_one_it_is_plain_training(models):
    """Bit for bit, with dropout, which draws."""
    _, student = models
    plain = copy.deepcopy(student)
    fit((None, plain))
    fit(models, theseus(rate=1, until=1.0, freeze=False))
    assert same(weights(student), weights(plain))


def test_at_rate_zero_no_layer_is_trained(models):
    watch = Watch(models)
    fit(models, theseus(rate=0, until=1.0, freeze=False), watch)
    for step in range(1, STEPS + 1):
        assert not any(map(inside, watch.moved[step]))
        assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= watch.moved[step]
        assert [name for name in watch.ran[step] if name.startswith("teacher")] == [f"teacher.{i}" for i in range(4)]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_oracle_of_the_same_draws(models, dropout):
    """Embeddings, layers and head called by hand, in float64: the same weights after some steps, those below a layer
    of the teacher too."""
    torch.manual_seed(0)
    teacher = bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).double()
    student = born(teacher, [0, 2]).double()
    reference = copy.deepcopy(student)
    watch = Watch((teacher, student))
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    callback = theseus(rate=0.5, until=1.0, freeze=False, dropout=bool(dropout))
    fit((teacher, student), callback, watch, optimizer=optimizer)
    draws = own(watch)
    assert {True, False} == {draw for step in draws.values() for draw in step}

    torch.manual_seed(3)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9)
    batches, known = data(), teacher.requires_grad_(False).bert.encoder.layer
    reference.train()
    teacher.train(bool(dropout))
    for step in range(1, STEPS + 1):
        batch, encoder = batches[(step - 1) % 3], reference.bert.encoder.layer
        hidden = reference.bert.embeddings(batch["input_ids"])
        for place, mine in enumerate(draws[step]):
            for layer in [encoder[place]] if mine else known[2 * place : 2 * place + 2]:
                hidden = layer(hidden, None)
        logits = reference.classifier(reference.dropout(reference.bert.pooler(hidden)))
        nn.functional.cross_entropy(logits.float(), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for name, tensor in reference.state_dict().items():
        assert torch.allclose(tensor, student.state_dict()[name], rtol=0, atol=1e-6), name


def test_gradients_go_through_the_teachers_layers(models):
    """Where only the first layer is the student's own, it moves; the teacher never does."""
    teacher, _ = models
    before = weights(teacher)
    watch = Watch(models)
    fit(models, theseus(until=1.0), watch)
    below = [step for step, draw in own(watch).items() if draw == [True, False]]
    assert below
    for step in below:
        assert {name for name in watch.moved[step] if inside(name)} >= {"bert.encoder.layer.0.output.dense.weight"}
        assert not any(name.startswith("bert.encoder.layer.1.") for name in watch.moved[step])
    assert same(weights(teacher), before)
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_the_replacing_phase_and_what_follows(models):
    """What is around the layers is frozen, at least one layer is trained, and from `until` on all is."""
    watch = Watch(models)
    fit(models, theseus(rate=0.1, until=0.5), watch, steps=20)
    for step, draw in own(watch).items():
        assert any(draw)
        assert all(map(inside, watch.moved[step])) == (step <= 10)
        if step > 10:
            assert draw == [True, True]
    assert watch.rates == {step: 0.1 if step <= 10 else 1.0 for step in range(1, 21)}


class Tower(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(depth)))
        self.head = nn.Linear(2, 2)

    def forward(self, input):
        return self.head(self.layers(input))


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.3, [0.3] * 4),
        (hb.schedule("linear_growth", start=0.2, end=1.0), [0.3, 0.5, 0.7, 0.9]),
        (hb.schedule("linear_growth", start=0.5, end=1.5), [0.625, 0.875, 1.0, 1.0]),
        ({"type": "piecewise", "points": [[0, 0.0], [1, 1.0]], "base": 0.5}, [1 / 16, 3 / 16, 5 / 16, 7 / 16]),
    ],
)
def test_the_share_of_replaced_layers_follows_the_schedule(rate, expected):
    """800 draws in each quarter of the time up to `until`."""
    teacher, student, ran = Tower(8), Tower(4), []
    for layer in student.layers:
        layer.register_forward_hook(lambda *_: None)
    batch = {"input": torch.randn(2, 2), "labels": torch.tensor([0, 1])}

    class Count:
        def grads_ready(self, state):
            ran.append(sum(layer.weight.grad is not None for layer in state.student.layers))

    run = hb.Distillation(teacher, student, [hb.loss("ce")])
    callback = theseus(student="layers[*]", teacher="layers[*]", rate=rate, until=0.8, freeze=False)
    run.fit([batch], steps=1000, callbacks=[callback, Count()], log_every=1000)
    found = [sum(ran[i : i + 200]) / 800 for i in range(0, 1000, 200)]
    assert found == pytest.approx([*expected, 1.0], abs=0.05)
    assert found[4] == 1.0


class Strike:
    """Ends a training in the middle of it, or not."""

    def __init__(self, error):
        self.error = error

    def forward_end(self, state):
        if self.error is not None and state.step == 5:
            raise self.error


@pytest.mark.parametrize("error", [None, RuntimeError("struck"), KeyboardInterrupt()], ids=["end", "error", "Ctrl-C"])
def test_nothing_of_it_is_left(models, error):
    teacher, student = models
    teacher.bert.encoder.layer[1].requires_grad_(False)
    student.classifier.bias.requires_grad_(False)

    def facts(model):
        modules = [(name, id(m), type(m), sorted(vars(m)), m.training) for name, m in model.named_modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return modules, hooks, [(n, id(p), p.requires_grad) for n, p in model.named_parameters()], [*model.state_dict()]

    before = facts(teacher), facts(student)
    try:
        fit(models, theseus(until=0.6, dropout=True), Strike(error))
    except (RuntimeError, KeyboardInterrupt):
        assert error is not None
    assert (facts(teacher), facts(student)) == before
    plain = born(teacher, [0, 2])
    plain.load_state_dict(student.state_dict())
    batch = {key: value for key, value in data()[0].items() if key != "labels"}
    assert torch.equal(plain.eval()(**batch).logits, student.eval()(**batch).logits)


def test_a_forward_of_whoever_came_before_stands_again(models):
    layer = models[1].bert.encoder.layer[0]
    mine = layer.forward
    layer.forward = mine
    fit(models, theseus())
    assert vars(layer)["forward"] is mine


def test_evaluations_and_copies_are_of_the_plain_student(models, tmp_path):
    """In the middle, with units in: the student in evaluation mode, what is saved of it, copies, pickles."""
    teacher, student = models
    names, looked = [*student.state_dict()], []
    batch = {key: value for key, value in data()[0].items() if key != "labels"}

    class Look:
        def step_end(self, state):
            if state.step == 3:
                assert [*student.state_dict()] == names
                assert type(student.bert.encoder.layer[0]).__name__ == "BertLayer"
                plain = born(teacher, [0, 2])
                plain.load_state_dict(student.state_dict())
                copies = [copy.deepcopy(student), pickle.loads(pickle.dumps(student))]
                student.save_pretrained(tmp_path / "saved")
                copies.append(BertForSequenceClassification.from_pretrained(tmp_path / "saved"))
                training = student.training
                expected = plain.eval()(**batch).logits
                for model in (student, *copies):
                    assert torch.equal(model.eval()(**batch).logits, expected)
                student.train(training)
                for copied in copies:  # it runs layers of its own in training too, whatever is drawn
                    layer = copied.bert.encoder.layer[0]
                    assert getattr(layer.forward, "__self__", None) is layer
                looked.append(True)

    def trained():
        return fit(models, theseus(), Look(), hb.callback("evaluate"), evaluate=data(), evaluate_every=2)

    trained()
    assert looked


def test_best_and_checkpoints_are_plain_students(models, tmp_path):
    callbacks = [theseus(until=1.0), hb.callback("best"), hb.callback("checkpoint", every=4), hb.callback("evaluate")]
    fit(models, *callbacks, evaluate=data(), evaluate_every=4, output=tmp_path / "run")
    best = BertForSequenceClassification.from_pretrained(tmp_path / "run/best")
    assert best.state_dict().keys() == models[1].state_dict().keys()
    from safetensors.torch import load_file

    for path in (tmp_path / "run/checkpoints").glob("*/student.safetensors"):
        born(models[0], [0, 2]).load_state_dict(load_file(path))


@pytest.mark.parametrize("at", [3, 8])
def test_resuming_is_exact(models, tmp_path, at):
    """From a checkpoint in the replacing phase, and from one after it; another seed of the process changes nothing."""
    teacher, student = models
    start, known = weights(student), weights(teacher)

    def run(name, error=None, resume=False):
        callbacks = [theseus(until=0.6), hb.callback("checkpoint", every=at)]
        optimizer = torch.optim.AdamW(student.parameters(), 0.01)
        return fit(models, *callbacks, *error or [], output=tmp_path / name, optimizer=optimizer, resume=resume)

    class Fall:
        def step_start(self, state):
            if state.step == at + 2:
                raise RuntimeError("fell")

    run("whole")
    whole = weights(student)
    student.load_state_dict(start)
    with pytest.raises(RuntimeError, match="fell"):
        run("cut", [Fall()])
    torch.manual_seed(99)
    student.load_state_dict(start)
    run("cut", resume=True)
    assert same(weights(student), whole)
    assert same(weights(teacher), known)


def test_micro_batches_have_the_same_draws(models):
    """Two batches of a step, and one of the size of both."""
    found, whole = [], data(1, 8)[0]
    for rows, accumulate in ((4, 2), (8, 1)):
        torch.manual_seed(0)
        teacher = bert(hidden_dropout_prob=0, attention_probs_dropout_prob=0).double()
        student = born(teacher, [1, 3]).double()
        parts = [{key: value[i : i + rows] for key, value in whole.items()} for i in range(0, 8, rows)]
        torch.manual_seed(7)
        optimizer = torch.optim.SGD(student.parameters(), 0.1)
        run = hb.Distillation(teacher, student, [hb.loss("ce")])
        callbacks = [theseus(until=1.0, freeze=False)]
        run.fit(parts, steps=6, accumulate=accumulate, optimizer=optimizer, callbacks=callbacks)
        found.append(weights(student))
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], rtol=0, atol=1e-6), name


@pytest.fixture(scope="module")
def ends(launched):
    """ends(case): what both ranks found."""
    return launched(Path(ranks_theseus.__file__))


def test_two_processes_train_as_one(ends):
    """Each has half of a batch, and both leave out the same layers."""
    for name, case in ranks_theseus.ARMS.items():
        (one, other), alone = ends(name), ranks_theseus.fit(slice(None), **case)
        assert one == other
        for mine, theirs in zip(one, alone, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)


def test_a_wrapper_that_waits_is_refused(ends):
    one, other = ends("waits")
    assert (
        one
        == other
        == (
            "callback 'theseus': steps leave layers of the student out, and its DistributedDataParallel waits for all "
            "of them; wrap it with find_unused_parameters=True"
        )
    )


def gpt2(depth):
    sizes = {"n_embd": 16, "n_head": 2, "vocab_size": 30, "n_positions": 12, "num_labels": 3, "pad_token_id": 0}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, n_layer=depth))


def test_a_decoder_keeps_no_keys_of_the_teachers_layers():
    """With a cache, which transformers makes in training too, layers of one number would attend to each other's."""
    teacher, student = gpt2(4), gpt2(2)
    for name in ("wte", "wpe", "ln_f"):
        getattr(student.transformer, name).load_state_dict(getattr(teacher.transformer, name).state_dict())
    student.score.load_state_dict(teacher.score.state_dict())
    assert student.config.use_cache
    seen = {}

    class Look:
        def forward_end(self, state):
            draws = tuple("forward" in vars(h) and h.forward.own for h in student.transformer.h)
            seen[state.step] = draws

        def log(self, state):
            seen[state.step] = seen[state.step], state.record["loss"]

    for model in (teacher, student):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.config.attn_pdrop = 0.0
    batch, first = data(1)[0], {}
    layers = "transformer.h[*]"
    for module in (*teacher.transformer.h, *student.transformer.h):
        module.attn.attn_dropout.p = 0.0
    optimizer = torch.optim.SGD(student.parameters(), 0.0)
    run = hb.Distillation(teacher, student, [hb.loss("ce")], causal=False)
    callback = theseus(student=layers, teacher=layers, until=1.0)
    run.fit([batch], steps=8, optimizer=optimizer, callbacks=[callback, Look()], log_every=1)
    for draws, loss in seen.values():
        blocks = [
            block
            for place, mine in enumerate(draws)
            for block in ([student.transformer.h[place]] if mine else teacher.transformer.h[2 * place : 2 * place + 2])
        ]
        if draws not in first:
            mixed = gpt2(len(blocks))
            mixed.transformer.h = nn.ModuleList(copy.deepcopy(block) for block in blocks)
            for place, block in enumerate(mixed.transformer.h):
                block.attn.layer_idx = place
            for name in ("wte", "wpe", "ln_f"):
                getattr(mixed.transformer, name).load_state_dict(getattr(teacher.transformer, name).state_dict())
            mixed.score.load_state_dict(teacher.score.state_dict())
            logits = mixed.eval()(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).logits
            first[draws] = nn.functional.cross_entropy(logits, batch["labels"]).item()
        assert loss == pytest.approx(first[draws], abs=1e-5), draws
    assert len(first) > 1


def told(models, *callbacks, **arguments):
    with pytest.raises((ConfigError, SelectorError, CallbackError)) as caught:
        fit(models, *callbacks, **arguments)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it begins to compile
def test_layers_that_cannot_be_shared_out(models):
    teacher, student = models
    where = "callback 'theseus': "
    assert told(models, theseus(teacher="bert.encoder.layer[0:3]")) == (
        f"{where}the student has 2 layers and the teacher 3; expected as many, or a multiple"
    )
    assert told(models, theseus(teacher="bert.encoder.layer[0]")) == (
        f"{where}the student has 2 layers and the teacher 1; expected as many, or a multiple"
    )
    assert told((None, student), theseus()) == (
        f"{where}it needs the layers of a teacher, and there is none: add a [teacher] table"
    )
    assert told(models, theseus(student="bert.encoder.layr[*]")).startswith(
        "selector 'bert.encoder.layr[*]' matches no"
    )
    assert told(models, theseus(), compile="student") == (
        f"{where}what layers run changes with the step, and the student is compiled; leave train.compile out"
    )
    student.bert.encoder.layer[0] = teacher.bert.encoder.layer[0]
    assert told(models, theseus(freeze=False), losses=[hb.loss("kd_ce")]) == (
        f"{where}the student shares weights with 'bert.encoder.layer.0' of the teacher; copy them"
    )


def test_what_would_be_frozen_is_the_teachers(models):
    teacher, student = models
    with torch.no_grad():
        student.classifier.weight += 1
    assert told(models, theseus()) == (
        "callback 'theseus': 'classifier.weight' of the student is not the teacher's, and would stay as it is; make "
        "the student of its teacher, or write freeze = false"
    )
    held = nn.ModuleDict({"model": teacher})
    held.forward = teacher.forward
    student.classifier.load_state_dict(teacher.classifier.state_dict())
    fit((held, student), theseus(teacher="model.bert.encoder.layer[*]"))


def test_layers_of_another_width():
    teacher, student = bert(), bert(2, hidden_size=8)
    message = told((teacher, student), theseus(freeze=False))
    assert message.startswith(
        "callback 'theseus': the teacher's bert.encoder.layer.0, bert.encoder.layer.1 cannot stand in for the "
        "student's 'bert.encoder.layer.0', which is given hidden states (4, 6, 8): "
    )


def test_layers_that_pass_on_more():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "vocab_size": 30, "num_labels": 3}
    teacher, student = (T5ForTokenClassification(T5Config(**sizes, num_layers=n)) for n in (4, 2))
    layers = "transformer.encoder.block[*]"
    batch = data(1)[0]
    batch["labels"] = batch["input_ids"] % 3
    run = hb.Distillation(teacher, student, [hb.loss("ce")])
    with pytest.raises(CallbackError) as caught:
        run.fit([batch], steps=2, callbacks=[theseus(student=layers, teacher=layers, freeze=False)])
    assert str(caught.value) == (
        "callback 'theseus': layer 'transformer.encoder.block.0' of the teacher gives more than hidden states to the "
        "next one, as the position bias of T5; one of its layers can stand in for one of the student's, not several"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.5}, "rate: must be from 0 to 1: 1.5"),
        ({"rate": "half"}, "rate: expected a number or a table, got the string 'half'"),
        ({"rate": {"type": "linaer"}}, "rate.type: no schedule called 'linaer'; did you mean 'linear'?"),
        ({"rate": 0}, "rate: must be above 0 where all else is frozen: nothing would be trained"),
        ({"until": 0}, "until: must be above 0: no layer would ever be replaced"),
        ({"until": 2}, "until: must be <= 1: 2.0"),
    ],
)
def test_options(models, options, message):
    assert message in told(models, theseus(**options))
