"""Several tasks of one student: whose samples a mean is over, what an absent task does, and what is shared."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

import hookbrew as hb
from hookbrew.errors import ConfigError, DataError


class Heads(nn.Module):
    """A trunk and a head for each task; (B, D) to a list of hidden states and the logits of all heads."""

    def __init__(self, width=4):
        super().__init__()
        self.trunk = nn.Linear(3, width)
        self.heads = nn.ModuleDict({"a": nn.Linear(width, 3), "b": nn.Linear(width, 2)})

    def forward(self, x):
        hidden = torch.tanh(self.trunk(x))
        return {name: head(hidden) for name, head in self.heads.items()}


class Wise(nn.Module):
    def __init__(self, classes, width=6):
        super().__init__()
        self.trunk, self.head = nn.Linear(3, width), nn.Linear(width, classes)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(torch.tanh(self.trunk(x)))


def batch(size, classes, seed, known=None):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (size,), generator=generator)
    labels[known if known is not None else size :] = -100
    return {"x": torch.randn(size, 3, generator=generator), "labels": labels}


def task(name, teacher=None, *losses, **keys):
    return hb.Task(teacher=teacher, losses=losses or [hb.loss("ce")], logits=f"heads.{name}", **keys)


class Order:
    """Gives the tasks in an order of its own, in place of the drawn one."""

    def __init__(self, distillation, monkeypatch, order):
        data = {"a": [batch(5, 3, 1), batch(2, 3, 2, known=1)], "b": [batch(4, 2, 3, known=3)]}

        def epoch(mixture, number, start=0):
            taken = {"a": iter(data["a"] * 9), "b": iter(data["b"] * 9)}
            self.given = [{**next(taken[name]), "task": name} for name in order]
            return iter(self.given)

        monkeypatch.setattr(hb.loop.Mixture, "epoch", epoch)
        monkeypatch.setattr(hb.loop.Mixture, "__len__", lambda _: len(order))
        self.data, self.distillation = data, distillation

    def fit(self, **train):
        return self.distillation.fit(self.data, **train)


def gradients(student):
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


class Kept:
    """Keeps the gradients of each step."""

    def __init__(self):
        self.seen = []

    def grads_ready(self, state):
        self.seen.append(gradients(state.student))


def test_a_mean_is_over_the_tasks_own_samples_of_a_step(pack, monkeypatch):
    """Four batches of two tasks in one step have the gradient that is written down here, in float64."""
    student, teacher = Heads().double(), Wise(3).double()
    tasks = {"a": task("a", teacher, hb.loss("kd_ce", temperature=2.0), hb.loss("ce", weight=0.5)), "b": task("b")}
    run = hb.Distillation(None, student, tasks=tasks, catalogue=pack)
    order = Order(run, monkeypatch, ["a", "b", "a", "a"])
    for item in (*order.data["a"], *order.data["b"]):
        item["x"] = item["x"].double()
    optimizer, kept = torch.optim.SGD(student.parameters(), 1e-12), Kept()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    run.fit(order.data, epochs=1, accumulate=4, optimizer=optimizer, callbacks=[kept])
    student.load_state_dict(before)
    student.zero_grad()
    mine = [item for item in order.given if item["task"] == "a"]
    x, labels = (torch.cat([item[key] for item in mine]) for key in ("x", "labels"))
    ours, theirs = student(x)["a"], teacher(x).detach()
    soft = -(softmax(theirs / 2, -1) * log_softmax(ours / 2, -1)).sum(-1)
    by_hand = 4 * (soft.sum() / len(x)) + 0.5 * cross_entropy(ours, labels, reduction="sum") / (labels >= 0).sum()
    (other,) = [item for item in order.given if item["task"] == "b"]
    by_hand = by_hand + cross_entropy(student(other["x"])["b"], other["labels"], reduction="sum") / 3
    by_hand.backward()
    wanted = gradients(student)
    assert kept.seen[0].keys() == wanted.keys()
    for name, gradient in wanted.items():
        # the loop weighs terms in float32
        torch.testing.assert_close(kept.seen[0][name], gradient, rtol=1e-6, atol=1e-8)
    assert kl_div is not None


def test_an_absent_task_moves_nothing(pack, monkeypatch):
    """Not even by weight decay or momentum; and the present one trains as if it were alone."""
    losses = []

    class Loss:
        def loss_end(self, state):
            losses.append(state.loss.item())

    def trained(tasks, order):
        torch.manual_seed(3)
        student = Heads()
        run = hb.Distillation(None, student, tasks=tasks, catalogue=pack)
        optimizer = torch.optim.AdamW(student.parameters(), 0.1, weight_decay=0.5)
        Order(run, monkeypatch, order).fit(epochs=1, optimizer=optimizer, accumulate=2, callbacks=[Loss()])
        return student

    torch.manual_seed(3)
    fresh = Heads()
    both = trained({"a": task("a"), "b": task("b")}, ["a", "a", "a"])
    assert torch.equal(both.heads["b"].weight, fresh.heads["b"].weight)
    assert not torch.equal(both.heads["a"].weight, fresh.heads["a"].weight)
    first, losses = losses, []
    with monkeypatch.context() as patched:
        patched.setattr(hb.loop.Mixture, "first", lambda mixture: [])
    alone = hb.Distillation(None, (single := Single(fresh)), [hb.loss("ce")], catalogue=pack)
    data = [batch(5, 3, 1), batch(2, 3, 2, known=1), batch(5, 3, 1)]

    optimizer = torch.optim.AdamW(single.parameters(), 0.1, weight_decay=0.5)
    alone.fit(data, epochs=1, optimizer=optimizer, accumulate=2, callbacks=[Loss()])
    assert losses == first
    assert torch.equal(single.net.heads["a"].weight, both.heads["a"].weight)


class Single(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)["a"]


def test_the_numbers_of_a_row(pack, monkeypatch):
    rows = []

    class Log:
        def log(self, state):
            rows.append(dict(state.record))

    tasks = {"a": task("a"), "b": task("b", None, hb.loss("ce", weight=hb_schedule()))}
    run = hb.Distillation(None, Heads(), tasks=tasks, catalogue=pack)
    Order(run, monkeypatch, ["a", "b"]).fit(epochs=1, log_every=1, callbacks=[Log()])
    named = [{name for name in row if name.startswith("loss/")} for row in rows]
    assert named == [{"loss/a/ce"}, {"loss/b/ce"}]
    assert [row["weight/b/ce"] for row in rows] == [1.0, 0.5]
    assert rows[1]["loss"] == pytest.approx(0.5 * rows[1]["loss/b/ce"])


def hb_schedule():
    return {"type": "linear_decay", "base": 1.0}


def test_intermediate_losses_and_what_they_train(pack, monkeypatch):
    """Projections of every task are trained, clipped with the rest, and named by their task."""
    loss = hb.loss("hidden_mse", student="trunk", teacher="trunk", projection="linear")
    tasks = {"a": task("a", Wise(3), loss), "b": task("b", Wise(2, width=5), loss)}
    run = hb.Distillation(None, Heads(), tasks=tasks, catalogue=pack)
    norms = []

    class Clipped:
        def grads_ready(self, state):
            trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms.append(nn.utils.get_total_norm([p.grad for p in trained]).item())
            assert {id(p) for p in run.objective.extras.parameters() if p.grad is not None} <= set(map(id, trained))

    order = Order(run, monkeypatch, ["a", "b"])
    optimizer = torch.optim.SGD(run.student.parameters(), 0.1)
    run.measure(run.mixed(run._feeds(order.data, whole=True), hb.config.Train(steps=1)), hb.config.Train(steps=1))
    names = sorted(name for name, _ in run.objective.extras.named_parameters())
    assert names == ["a/hidden_mse/Linear.weight", "b/hidden_mse/Linear.weight"] or len(names) in (2, 4)
    before = [p.detach().clone() for p in run.objective.extras.parameters()]
    order.fit(epochs=1, accumulate=2, clip_grad_norm=1e-3, optimizer=optimizer, callbacks=[Clipped()])
    assert norms == pytest.approx([1e-3], rel=1e-3)
    assert not any(map(torch.equal, before, run.objective.extras.parameters()))
    assert [term.name for term in run.objective.terms] == ["a/hidden_mse", "b/hidden_mse"]


def test_one_teacher_of_two_tasks(pack, monkeypatch):
    """Where one task needs half of it, the other still gets its output; and no hook is left on it."""
    teacher = Wise(3)
    half = hb.loss("hidden_mse", student="trunk", teacher="trunk", projection="linear")
    tasks = {"a": task("a", teacher, hb.loss("kd_ce")), "b": task("b", teacher, half)}
    run = hb.Distillation(None, Heads(), tasks=tasks, catalogue=pack)
    seen = []

    class Outputs:
        def forward_end(self, state):
            seen.append((state.task, state.teacher_out))

    teacher.train()
    Order(run, monkeypatch, ["b", "a", "b"]).fit(epochs=1, callbacks=[Outputs()])
    assert [(name, out is None) for name, out in seen] == [("b", True), ("a", False), ("b", True)]
    torch.testing.assert_close(seen[1][1], teacher(batch(5, 3, 1)["x"]))
    assert teacher.training
    for model in (teacher, run.student):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("names", [("type", "keys"), ("pop", "student"), ("a-1", "2")])
def test_any_word_may_name_a_task(pack, names):
    loss = hb.loss("hidden_mse", student="trunk", teacher="trunk", projection="linear")
    tasks = {name: task("a", Wise(3), loss) for name in names}
    run = hb.Distillation(None, Heads(), tasks=tasks, catalogue=pack)
    state = run.fit({name: [batch(3, 3, 1)] for name in names}, steps=3)
    assert state.step == 3


def test_evaluation_counts_each_task_by_itself(pack):
    student = Heads()
    run = hb.Distillation(None, student, tasks={"a": task("a"), "b": task("b")}, catalogue=pack)
    data = {"a": [batch(5, 3, 1), batch(2, 3, 2, known=1)], "b": [batch(4, 2, 3)]}
    metrics = ["accuracy", "loss"]
    state = run.fit(data, steps=2, evaluate=data, callbacks=[hb.callback("evaluate", metrics=metrics)])
    assert list(state.metrics) == ["a/accuracy", "a/loss", "b/accuracy", "b/loss"]
    with torch.no_grad():
        for name, given in data.items():
            x, labels = (torch.cat([item[key] for item in given]) for key in ("x", "labels"))
            logits = student(x)[name][labels >= 0]
            labels = labels[labels >= 0]
            assert state.metrics[f"{name}/accuracy"] == pytest.approx(
                (logits.argmax(-1) == labels).float().mean().item()
            )
            assert state.metrics[f"{name}/loss"] == pytest.approx(cross_entropy(logits, labels).item())
    some = run.fit(data, steps=1, evaluate={"b": data["b"]}, callbacks=[hb.callback("evaluate")])
    assert list(some.metrics) == ["b/accuracy"]


def test_mistakes_of_the_call(pack):
    def made(**arguments):
        return hb.Distillation(arguments.pop("teacher", None), Heads(), catalogue=pack, **arguments)

    both = {"a": task("a"), "b": task("b")}
    run, data = made(tasks=both), {"a": [batch(2, 3, 1)], "b": [batch(2, 2, 1)]}
    loaders = "fit: expected a mapping of tasks to loaders, of a, b; got"
    for call, message in [
        (lambda: run.fit({"a": data["a"]}, steps=1), f"{loaders} a"),
        (lambda: run.fit({**data, "c": data["a"]}, steps=1), f"{loaders} a, b, c"),
        (lambda: run.fit(data["a"], steps=1), f"{loaders} a list"),
        (lambda: run.fit(data, steps=1, evaluate={"c": data["a"]}), f"{loaders} c"),
        (lambda: run.fit(data, steps=1, tau=-1), "fit: tau: must be >= 0.0: -1.0"),
        (lambda: made(tasks={"a.b": both["a"]}), "tasks: a task's name has letters, digits, - and _; got 'a.b'"),
        (lambda: made(tasks={"a": {"losses": []}}), "tasks.a: expected hb.Task(...), got a dict"),
        (
            lambda: made(tasks=both, losses=[hb.loss("ce")]),
            "tasks: each has its own teacher, losses and keys of data; leave these out",
        ),
        (
            lambda: made(tasks={"a": task("a", {"student": Wise(3)}, hb.loss("kd_ce"))}),
            "tasks.a.teachers.student: a teacher's name has letters, digits, - and _, and is not 'student'",
        ),
        (
            lambda: made(tasks={"a": task("a", Wise(3), hb.loss("kd_ce"), merge={"by": "logits"})}),
            "tasks.a.merge: there are no several teachers to merge; name them with [teachers.NAME]",
        ),
        (
            lambda: made(losses=[hb.loss("ce")], logits="heads.a").fit(data["a"], steps=1, tau=0.5),
            "fit: tau: there are no tasks to draw from",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == message
    with pytest.raises(DataError, match="the data of task 'a' has a key 'task'"):
        run.fit({**data, "a": [{**data["a"][0], "task": 1}]}, steps=1)


def test_a_batch_of_no_task(pack):
    run = hb.Distillation(None, Heads(), tasks={"a": task("a")}, catalogue=pack)
    with pytest.raises(ConfigError) as caught:
        run.objective.forward({**batch(2, 3, 1), "task": "c"})
    assert str(caught.value) == "tasks: a batch is of 'c', which is no task"
