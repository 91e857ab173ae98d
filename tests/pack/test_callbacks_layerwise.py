"""Layer-wise training: each layer by itself, from what the teacher's is given; and that nothing of it is left."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

import hookbrew as hb
from hookbrew.errors import CallbackError, ConfigError
from tests.pack.test_callbacks_theseus import bert, born, data, same, weights

STUDENT, TEACHER = "bert.encoder.layer[*]", "bert.encoder.layer[1,3]"


@pytest.fixture
def models():
    teacher = bert(hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return teacher, born(teacher, [0, 2])


def layerwise(**options):
    return hb.callback("layerwise", **{"student": STUDENT, "teacher": TEACHER, **options})


def fit(models, *callbacks, losses=None, steps=6, **arguments):
    teacher, student = models
    torch.manual_seed(3)
    losses = losses or [hb.loss("hidden_mse", student=STUDENT, teacher=TEACHER)]
    run = hb.Distillation(teacher, student, losses)
    optimizer = torch.optim.SGD(student.parameters(), 0.3, momentum=0.9)
    return run.fit(data(), steps=steps, optimizer=optimizer, callbacks=[*callbacks], **arguments)


def test_each_layer_is_trained_as_if_it_were_alone(models):
    """Each by hand in float64, on the hidden states that the teacher's own layer gets, kept from a forward of it."""
    teacher, student = (model.double() for model in models)
    alone, batches = copy.deepcopy(student), data()
    fit(models, layerwise())
    for place, theirs in enumerate((1, 3)):
        layer = alone.bert.encoder.layer[place]
        optimizer = torch.optim.SGD(layer.parameters(), 0.3, momentum=0.9)
        for step in range(6):
            batch = {key: value for key, value in batches[step % 3].items() if key != "labels"}
            with torch.no_grad():
                hidden = teacher.eval()(**batch, output_hidden_states=True).hidden_states
            optimizer.zero_grad()
            nn.functional.mse_loss(layer(hidden[theirs], None), hidden[theirs + 1]).backward()
            optimizer.step()
        for name, tensor in layer.state_dict().items():
            assert torch.allclose(tensor, student.bert.encoder.layer[place].state_dict()[name], rtol=0, atol=1e-6), name
        assert not torch.allclose(layer.output.dense.weight, teacher.bert.encoder.layer[2 * place].output.dense.weight)


def test_a_layer_depends_on_its_own_loss_alone(models):
    """Another loss of the second layer leaves the first bit for bit, and what is below never moves."""
    teacher, student = models
    other, start = copy.deepcopy(student), weights(student)
    fit(models, layerwise())
    strong = {"student": "bert.encoder.layer[1]", "teacher": "bert.encoder.layer[3]", "weight": 7.0}
    first = hb.loss("hidden_mse", student="bert.encoder.layer[0]", teacher="bert.encoder.layer[1]")
    fit((teacher, other), layerwise(), losses=[first, hb.loss("hidden_mse", **strong)])
    one, two = weights(student), weights(other)
    assert all(torch.equal(one[name], two[name]) for name in one if ".layer.0." in name)
    assert not all(torch.equal(one[name], two[name]) for name in one if ".layer.1." in name)
    assert all(torch.equal(start[name], one[name]) for name in one if "embeddings" in name)


class Strike:
    def __init__(self, error):
        self.error = error

    def forward_end(self, state):
        if self.error is not None and state.step == 3:
            raise self.error


@pytest.mark.parametrize("error", [None, RuntimeError("struck"), KeyboardInterrupt()], ids=["end", "error", "Ctrl-C"])
def test_no_hook_is_left(models, error):
    def facts(model):
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return hooks, [(name, id(m), sorted(vars(m))) for name, m in model.named_modules()], [*model.state_dict()]

    before = [facts(model) for model in models]
    try:
        fit(models, layerwise(), Strike(error))
    except (RuntimeError, KeyboardInterrupt):
        assert error is not None
    assert [facts(model) for model in models] == before


def test_evaluations_are_of_the_plain_student(models):
    """And copies that are made on the way have hooks that do nothing."""
    teacher, student = models
    found = []

    class Look:
        def step_end(self, state):
            copied = copy.deepcopy(student).train()
            expected = born(teacher, [0, 2])
            expected.load_state_dict(student.state_dict())
            batch = {key: value for key, value in data()[0].items() if key != "labels"}
            torch.manual_seed(0)
            found.append(torch.equal(copied(**batch).logits, expected.train()(**batch).logits))

        def eval_batch_end(self, state):
            plain = born(teacher, [0, 2])
            plain.load_state_dict(student.state_dict())
            batch = {key: value for key, value in state.batch.items() if key != "labels"}
            found.append(torch.equal(plain.eval()(**batch).logits, state.logits))

    fit(models, layerwise(), Look(), evaluate=data(1), evaluate_every=2)
    assert len(found) == 9
    assert all(found)


def test_layers_that_are_given_keywords():
    """Those of Llama; and a mask is the student's own."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24}
    sizes |= {"vocab_size": 30, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 16}
    teacher, student = (LlamaForSequenceClassification(LlamaConfig(**sizes, num_hidden_layers=n)) for n in (4, 2))
    given = []

    class Look:
        def run_start(self, state):
            layers = student.model.layers[1], teacher.model.layers[3]
            self.hooks = [
                layer.register_forward_pre_hook(lambda m, args, kwargs: given.append(args or kwargs), with_kwargs=True)
                for layer in layers
            ]

        def close(self, state):
            for hook in self.hooks:
                hook.remove()

    losses = [hb.loss("hidden_mse", student="model.layers[*]", teacher="model.layers[1,3]")]
    run = hb.Distillation(teacher, student, losses, causal=False)
    run.fit(data(1), steps=1, callbacks=[layerwise(student="model.layers[*]", teacher="model.layers[1,3]"), Look()])
    theirs, mine = ((call[0] if isinstance(call, tuple) else call["hidden_states"]) for call in given)
    assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_gives_the_same(models):
    teacher, student = models
    plain = copy.deepcopy(student)
    fit((teacher, plain), layerwise())
    student.gradient_checkpointing_enable({"use_reentrant": False})
    fit(models, layerwise())
    assert same(weights(student), weights(plain))


def told(models, *callbacks, **arguments):
    with pytest.raises((ConfigError, CallbackError)) as caught:
        fit(models, *callbacks, **arguments)
    return str(caught.value)


def test_what_cannot_be(models):
    assert told(models, layerwise(teacher="bert.encoder.layer[*]")) == (
        "callback 'layerwise': the student has 2 layers and the teacher 4; name one for each"
    )
    low = [hb.loss("hidden_mse", student="bert.encoder.layer[0]", teacher="bert.encoder.layer[1]")]
    assert told(models, layerwise(), losses=low) == (
        "callback 'layerwise': the teacher's 'bert.encoder.layer.3' was not run on this batch: a loss has to compare "
        "with that layer or a later one, or train.stop_teacher be false; a teacher may not remember"
    )
    fit(models, layerwise(), losses=low, stop_teacher=False)
    narrow = bert(2, hidden_size=8)
    project = [hb.loss("hidden_mse", student=STUDENT, teacher=TEACHER, projection="linear")]
    assert told((models[0], narrow), layerwise(), losses=project) == (
        "callback 'layerwise': the teacher's 'bert.encoder.layer.1' is given hidden states (4, 6, 16), and the "
        "student's 'bert.encoder.layer.0' (4, 6, 8); they must be the same"
    )
