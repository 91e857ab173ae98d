"""Teachers by name: who is compared with what, what each is called in messages, and when each may stop."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import hookbrew as hb
from hookbrew.errors import ConfigError


def message(call, kind=ConfigError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
HIDDEN = {"student": "blocks[0]", "projection": "linear"}


def test_each_loss_has_the_teachers_that_it_names(tagger, batches, objective, step):
    (batch,) = batches([4, 2, 3])
    student, big, wide = (tagger(w, pooled=False) for w in (8, 12, 16))
    tables = [
        hb.loss("kd_mse"),
        hb.loss("kd_mse", teacher={"wide": "logits"}),
        hb.loss("hidden_mse", teacher={"big": "blocks[1]"}, **HIDDEN),
    ]
    made = objective(student, {"big": big, "wide": wide}, tables, batch)
    means, _ = step(made, [batch])
    there = batch["attention_mask"].bool()
    ours, first, second = (m(batch["input_ids"]).detach()[there] for m in (student, big, wide))
    (projection,) = made.extras.values()
    assert projection.weight.shape == (12, 8)
    seen = projection(student.blocks[0](student.embed(batch["input_ids"])))
    hidden = big.embed(batch["input_ids"])
    hidden = big.blocks[1](hidden + big.blocks[0](hidden))
    assert means.tolist() == pytest.approx(
        [
            (ours - (first + second) / 2).square().mean().item(),
            (ours - second).square().mean().item(),
            (seen - hidden)[there].square().mean().item(),
        ],
        abs=1e-6,
    )
    assert made.described(made.terms[2]) == "student blocks.0 ~ big blocks.1"


def test_one_model_twice(tagger, batches, objective, step):
    """Under two names, by other inputs: each has its own."""
    (batch,) = batches([4, 2, 3])
    teacher, student = tagger(12), tagger(8)
    ids = batch["input_ids"].flip(0)
    parts = {**batch, "teacher.b.input_ids": ids, "teacher.b.attention_mask": batch["attention_mask"].flip(0)}
    tables = [hb.loss("kd_mse", teacher={"a": "logits"}), hb.loss("kd_mse", teacher={"b": "logits"})]
    means, _ = step(objective(student, {"a": teacher, "b": teacher}, tables, parts), [parts], 3)
    ours, theirs = (m(batch["input_ids"], batch["attention_mask"]) for m in (student, teacher))
    want = [(ours - theirs).square().mean().item(), (ours - theirs.flip(0)).square().mean().item()]
    assert means.tolist() == pytest.approx(want, abs=1e-6)


def test_only_a_teacher_whose_output_nobody_reads_stops(tagger, batches, objective, step):
    (batch,) = batches([4, 2, 3])
    teachers = {name: tagger(12, pooled=False) for name in ("big", "early", "wide")}
    tables = [
        hb.loss("kl", teacher={"big": "logits", "wide": "logits"}),
        hb.loss("hidden_mse", teacher={"early": "blocks[0]"}, **HIDDEN),
        hb.loss("hidden_mse", teacher={"wide": "blocks[0]"}, **HIDDEN),
    ]
    made = objective(tagger(8, pooled=False), teachers, tables, batch)
    assert made.stops == {"early": "blocks.0"}
    means, slope = step(made, [batch])
    with made.attached():
        made.forward(batch)
        assert {name: out is None for name, out in made.outputs[1].items()} == {
            "big": False,
            "early": True,
            "wide": False,
        }
        made.measure(batch, stop=False)
    whole, gradient = step(made, [batch])
    assert torch.equal(whole, means)
    assert torch.equal(gradient, slope)


def test_merged_teachers_may_stop_early(tagger, batches, objective, step):
    """Both are merged by what a layer gives, and neither goes on."""
    (batch,) = batches([4, 2, 3])
    teachers = {"a": tagger(8, pooled=False), "b": tagger(8, pooled=False)}
    tables = [hb.loss("kl", student="blocks[1]", teacher={"a": "blocks[0]", "b": "blocks[1]"})]
    made = objective(tagger(8, pooled=False), teachers, tables, batch)
    assert made.stops == {"a": "blocks.0", "b": "blocks.1"}
    assert torch.isfinite(step(made, [batch])[0]).all()


def test_an_idle_teacher(tagger, pack, batches):
    both = {"big": tagger(), "idle": tagger()}
    run = hb.Distillation(both, tagger(), [hb.loss("kl", teacher={"big": "logits"})], catalogue=pack)
    assert message(lambda: run.fit(batches([4, 2]), steps=1)) == (
        "teachers.idle: no loss compares with it, so nothing would be learned from it"
    )
    run = hb.Distillation(tagger(), tagger(), [hb.loss("ce")], catalogue=pack)
    assert message(lambda: run.fit(batches([4, 2]), steps=1)) == (
        "teacher: no loss compares with it, so nothing would be learned from it"
    )


def test_an_idle_teacher_is_not_run_where_a_callback_uses_it(tagger, pack, batches):
    """Of several the others are, in their order."""

    class Use:
        teaches, given = True, None

        def forward_end(self, state):
            self.given = state.teacher_out

    both, ran = {"idle": tagger(), "big": tagger(), "wide": tagger()}, []
    for name, model in both.items():
        model.register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
    use, losses = Use(), [hb.loss("kl", teacher={"big": "logits", "wide": "logits"})]
    hb.Distillation(both, tagger(), losses, catalogue=pack).fit(batches([4, 2]), steps=1, callbacks=[use])
    assert ran == ["big", "wide"] * (len(ran) // 2)
    assert [*use.given] == ["big", "wide"]
    hb.Distillation(tagger(), tagger(), [hb.loss("ce")], catalogue=pack).fit(batches([4]), steps=1, callbacks=[use])
    assert use.given is None


def test_a_teacher_that_is_not_there(tagger, objective):
    both = {"big": tagger(), "wide": tagger()}
    assert message(lambda: objective(tagger(), both, [hb.loss("kl", teacher={"bgi": "logits"})])) == (
        "losses[0]: teacher: there is none called 'bgi'; did you mean 'big'?"
    )


def test_hidden_losses_name_one(tagger, objective):
    both = {"big": tagger(), "wide": tagger()}
    assert message(lambda: objective(tagger(), both, [hb.loss("hidden_mse", teacher="blocks[0]", **HIDDEN)])) == (
        "losses[0]: loss 'hidden_mse' compares with one teacher, and there are big, wide; name it: "
        'teacher = { big = "..." }'
    )
    table = hb.loss("hidden_mse", teacher={"big": "blocks[0]", "wide": "blocks[0]"}, **HIDDEN)
    assert message(lambda: objective(tagger(), both, [table])).startswith(
        "losses[0]: loss 'hidden_mse' compares with one teacher, and there are big, wide;"
    )


def test_a_wrong_selector_has_its_place(tagger, objective):
    both = {"big": tagger(), "wide": tagger()}
    assert message(lambda: objective(tagger(), both, [hb.loss("kl", teacher={"big": "logits", "wide": "hed"})])) == (
        "losses[0].teacher.wide: selector 'hed' matches no module of Tagger. Stopped at the model: no child 'hed'; "
        "did you mean 'head'?"
    )


def test_a_name_that_is_no_place_is_refused(pack):
    tasks = {"my task": hb.Task(losses=[hb.loss("ce")]), "other": hb.Task(losses=[hb.loss("ce")])}
    assert message(lambda: hb.Distillation(None, torch.nn.Linear(2, 3), tasks=tasks, catalogue=pack)) == (
        "tasks: a task's name has letters, digits, - and _; got 'my task'"
    )


def test_a_wrong_selector_of_a_task_has_its_place(pack, batches):
    config = BertConfig(**SIZES, num_labels=3)
    losses = [hb.loss("hidden_mse", student=["hidden[1]", "hidden[9]"], teacher=["hidden[0]", "hidden[1]"])]
    models = [BertForSequenceClassification(config) for _ in range(2)]
    run = hb.Distillation(None, models[0], tasks={"my-task": hb.Task(losses=losses, teacher=models[1])}, catalogue=pack)
    assert message(lambda: run.fit({"my-task": batches([4, 2])}, steps=1)).startswith(
        "tasks.my-task.losses[0].student: selector 'hidden[9]'"
    )


def test_shapes_that_differ_say_of_whom(tagger, batches, objective):
    (batch,) = batches([4, 2])
    both = {"big": tagger(), "wide": tagger(classes=5)}
    assert message(lambda: objective(tagger(), both, [hb.loss("kl")], batch)) == (
        "losses[0]: student (2, 3) and teacher 'wide' (2, 5) differ: they must have the same classes"
    )
    tables = [hb.loss("kl", student="blocks[*]", teacher={"big": "blocks[*]", "wide": "blocks[0:1]"})]
    both = {"big": tagger(), "wide": tagger()}
    assert message(lambda: objective(tagger(), both, tables, batch)) == (
        "losses[0]: 2 student taps and 1 teacher 'wide' taps; they are matched one to one"
    )
    tables = [hb.loss("kl", student="blocks[0]", teacher={"big": "blocks[*]", "wide": "blocks[*]"})]
    assert "one side is a list of 2 tensors" in message(lambda: objective(tagger(), both, tables, batch))


@pytest.mark.parametrize("name", ["student", "a.b", "", "eval", "training"])
def test_names_that_no_teacher_can_have(tagger, objective, name):
    assert message(lambda: objective(tagger(), {"big": tagger(), name: tagger()}, [hb.loss("kl")])) == (
        f"teachers.{name}: no teacher can be called so: it is the student, has a dot, or is a word of torch's modules"
    )


def test_the_only_teacher_may_have_a_name(tagger, batches, objective):
    """What it returned is there as it is, for callbacks."""
    (batch,) = batches([4, 2])
    teacher = tagger()
    made = objective(tagger(), {"big": teacher}, [hb.loss("kl")], batch)
    with made.attached():
        made.forward(batch)
        assert torch.equal(made.outputs[1], teacher(batch["input_ids"], batch["attention_mask"]))
    assert str(ConfigError([*objective(tagger(), {"big": teacher}, [hb.loss("ce")]).idle.values()])) == (
        "teachers.big: no loss compares with it, so nothing would be learned from it"
    )


def test_teachers_are_in_evaluation_mode_and_get_their_own_back(tagger, batches, objective):
    (batch,) = batches([4, 2])
    both = {"big": tagger(dropout=0.5), "wide": tagger(dropout=0.5).eval()}
    made = objective(tagger(), both, [hb.loss("kl")], batch)
    with made.attached():
        assert not any(module.training for teacher in both.values() for module in teacher.modules())
    assert both["big"].training
    assert not both["wide"].training


def test_a_student_among_its_teachers(tagger, batches, objective):
    """It learns from its own evaluation mode, and from another."""
    (batch,) = batches([4, 2])
    student = tagger(dropout=0.5)
    made = objective(student, {"own": student, "big": tagger()}, [hb.loss("kl")], batch)
    with made.attached():
        student.train()
        made.forward(batch)
        assert student.dropout.training
        learned, taught = made.outputs
    student.eval()
    assert torch.equal(taught["own"], student(batch["input_ids"], batch["attention_mask"]))
    assert not torch.equal(learned, taught["own"])


def test_a_teacher_called_like_a_task(tagger, batches, pack):
    """Names of teachers and of tasks are apart."""
    (batch,) = batches([4, 2, 3, 1])
    student, teachers = tagger(8), {"trec": tagger(12), "sst": tagger(16)}
    losses = [hb.loss("kl", teacher={"trec": "logits"}), hb.loss("kd_mse")]
    tasks = {"trec": hb.Task(losses=losses, teacher=teachers), "sst": hb.Task(losses=[hb.loss("ce")])}
    run = hb.Distillation(None, student, tasks=tasks, catalogue=pack)
    batch["teacher"] = {"trec": {"input_ids": batch["input_ids"].flip(0)}}
    rows = []

    class Rows:
        def log(self, state):
            rows.append(state.record)

    run.fit({"trec": [batch], "sst": [batch]}, steps=4, log_every=1, callbacks=[Rows()])
    assert {key for row in rows for key in row if key.startswith("loss/")} == {
        "loss/trec/kl",
        "loss/trec/kd_mse",
        "loss/sst/ce",
    }


class Wide(nn.Module):
    """Two layers of tokens, of widths of their own."""

    def __init__(self, first, second):
        super().__init__()
        self.embed = nn.Embedding(20, first)
        self.up = nn.Linear(first, second)

    def forward(self, input_ids, attention_mask=None):
        return self.up(self.embed(input_ids))


FLOW = ["embed", "up"]


@pytest.mark.parametrize("loss", ["fsp", "nst"])
def test_two_layers_through_one_projection(batches, objective, step, split, loss):
    (batch,) = batches([7, 1, 4, 2, 6, 3])
    student, teacher = Wide(8, 8), Wide(12, 12)
    tables = [hb.loss(loss, student=FLOW, teacher={"big": FLOW}, projection="linear")]
    made = objective(student, {"big": teacher}, tables, batch)
    assert [tuple(p.shape) for p in made.extras.parameters()] == [(12, 8), (12,)]
    assert made.described(made.terms[0]) == "student embed and up ~ big embed and up"
    means, slope = step(made, [batch])
    (projection,) = made.extras.values()
    total, count = 0.0, 0
    for ids, length in zip(batch["input_ids"], batch["attention_mask"].sum(1).tolist(), strict=True):
        x = student.embed(ids[:length])
        y = projection(student.up(x))
        x, u = projection(x), teacher.embed(ids[:length])
        v = teacher.up(u)
        x, y, u, v = (one.detach().double() for one in (x, y, u, v))
        if loss == "fsp":
            total, count = total + (((x.T @ y) - (u.T @ v)) / length).square().mean(), count + 1
        else:
            total, count = total + ((x @ y.T - u @ v.T) / 12).square().sum(), count + length**2
    assert means.item() == pytest.approx(float(total / count), abs=1e-5)
    found, gradient = step(made, split(batch))
    assert torch.allclose(found, means, rtol=1e-5, atol=1e-6)
    assert torch.allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_two_layers_of_two_widths_have_no_one_projection(batches, objective):
    tables = [hb.loss("nst", student=FLOW, teacher=FLOW, projection="linear")]
    assert message(lambda: objective(Wide(8, 6), Wide(12, 12), tables, *batches([4, 2]))) == (
        "losses[0]: projection: the student's two layers have widths 8 and 6; one projection is for both"
    )


def test_a_flow_is_of_two_layers(batches, objective):
    (batch,) = batches([4, 2])
    for side, wrong, many in (("student", "up", "one tensor"), ("teacher", ["up"], "a list of 1")):
        tables = [hb.loss("fsp", **{"student": FLOW, "teacher": FLOW, side: wrong})]
        assert message(lambda t=tables: objective(Wide(8, 8), Wide(8, 8), t, batch)) == (
            f"losses[0]: loss 'fsp' compares two layers of each side, and the {side} names {many}; write two, as in "
            '["hidden[0]", "hidden[-1]"]'
        )
