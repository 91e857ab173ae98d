"""What one of two gloo ranks does for test_ranks_objective.py; ../rank.py runs the cases.

Each rank trains a wrapped student on its own batches, by `fit`, and beside it a plain one on those of both ranks, two
to a step: the mean of both ranks' losses. All in float64.
"""

import copy
import gc
import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as Replica
from torch.utils.data import DataLoader, IterableDataset

import hookbrew as hb
import hookbrew_plugins
from hookbrew.errors import HookbrewError
from hookbrew.objective import reach
from hookbrew.plugin import catalogue
from hookbrew.ranks import shard as everyone

RANK = distributed.get_rank()
PACK = catalogue(discover=False, plugins=[hookbrew_plugins])


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.block = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.block:
            x = x + block(x)
        return self.head(x)


class Watch:
    """What the evaluation and the log say."""

    def __init__(self):
        self.seen = []

    def eval_batch_end(self, state):
        self.seen.append(state.logits.detach())

    def log(self, state):
        self.seen.append(torch.tensor(state.record["grad_norm"]))


def shard(model, **options):
    for block in model.block:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def nets():
    """A teacher and a student of different widths, always the same."""
    torch.manual_seed(0)
    return Net(8).double(), Net(6).double()


def batches():
    """Three optimizer steps of two micro-batches, each with one batch for each rank."""
    generator = torch.Generator().manual_seed(1)
    return [[{"x": torch.randn(3, 4, generator=generator).double()} for _ in range(2)] for _ in range(6)]


def hidden():
    return [hb.loss("hidden_mse", student="block[0:2]", teacher="block[0:2]", projection="linear")]


def both():
    return [hb.loss("kd_ce"), hb.loss("hidden_mse", student="block[1]", teacher="block[1]", projection="linear")]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def trained(module):
    return [whole(parameter.detach()) for parameter in module.parameters()]


def hooks(model):
    """How many hooks all modules have."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def divergences():
    return [hb.loss("jsd"), hb.loss("kl", weight=0.5), *hidden()]


def fitted(student, losses, loader, accumulate, *, seed=0, sgd=True, fits=1, chunked="auto"):
    """A distillation after `fits`, and what the watch saw."""
    run, watch = hb.Distillation(nets()[0], student, losses, catalogue=PACK), Watch()
    made = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9) if sgd else None
    torch.manual_seed(seed)  # of the projections
    for _ in range(fits):
        run.fit(
            loader, epochs=1, accumulate=accumulate, optimizer=made, clip_grad_norm=0.2, log_every=1,
            evaluate=[batches()[0][0]], callbacks=[watch], chunked=chunked,
        )  # fmt: skip
    return run, watch.seen


def train(wrap, losses, *, chunked="auto", **options):
    """Largest differences from one process, and whether the model is as it was given."""
    plain = nets()[1]
    single, expected = fitted(plain, losses(), [part for pair in batches() for part in pair], 4, **options)
    student = wrap(copy.deepcopy(nets()[1]))
    before = hooks(student), [type(p).__name__ for p in student.parameters()]
    several, seen = fitted(
        student, losses(), [pair[RANK] for pair in batches()], 2, seed=RANK, chunked=chunked, **options
    )
    pairs = {
        "student": (trained(plain), trained(student)),
        "extras": (trained(single.objective.extras), trained(several.objective.extras)),
        "seen": (expected, seen),
    }
    return {
        "difference": {name: worst(*pair) for name, pair in pairs.items()},
        "moved": worst(trained(plain.stem), trained(nets()[1].stem)),
        "stop": several.objective.stops.get("teacher"),
        "clean": before == (hooks(student), [type(p).__name__ for p in student.parameters()]),
    }


def unchunked():
    """What a wrapped student says to losses in chunks."""
    try:
        train(Replica, divergences, chunked=True)
    except HookbrewError as error:
        return str(error)


def worst(expected, found):
    return max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))


def reached(wrap, losses):
    """As `check` does it: differences of gradient norms from a plain student's on this rank's batch."""
    found = []
    for student in (nets()[1], wrap(nets()[1])):
        objective = hb.Distillation(nets()[0], student, losses(), catalogue=PACK).objective
        with objective.attached():
            torch.manual_seed(0)
            objective.measure(batches()[0][RANK])
            objective.forward(batches()[0][RANK])
            norms, missed = reach(objective.means(batches()[0][RANK]), student)
        found.append((torch.tensor(list(norms.values())), missed))
    (expected, there), (norms, here) = found
    return worst([expected], [norms]), there == here, all(p.grad is None for p in student.parameters())


def shared(wrap):
    """Differences from one process where of six samples one rank has one, and the other five."""
    plain, student = nets()[1], wrap(nets()[1])
    joined = [{"x": torch.cat([one["x"], other["x"]])} for one, other in batches()]
    fitted(plain, both(), joined, 2)
    parts = [{"x": batch["x"][:1] if RANK else batch["x"][1:]} for batch in joined]
    fitted(student, both(), parts, 2, seed=RANK)
    return worst(trained(plain), trained(student))


def refused(loader, evaluate):
    """Why a fit in two processes is refused."""
    run = hb.Distillation(nets()[0], nets()[1], both(), catalogue=PACK)
    try:
        run.fit(loader, epochs=1, evaluate=evaluate, callbacks=[Watch()])
    except hb.errors.DataError as error:
        return str(error)


class Trimming(Net):
    """Scores tokens, (B, L, 3), and leaves out what is padding in all of a batch, as packed sequences do."""

    def forward(self, x):
        return super().forward(x[:, : int((x != 0).any(dim=-1).sum(dim=1).max())])


def trimmed():
    """Whether an evaluation sees what one process alone does; each half of the rows has a length of its own."""
    torch.manual_seed(0)
    teacher, student = Trimming(8).double(), Trimming(6).double()
    x = torch.randn(4, 5, 4).double()
    x[2:, 3:] = 0
    watch = Watch()
    run = hb.Distillation(teacher, student, [hb.loss("kd_ce")], catalogue=PACK)
    run.fit([{"x": x}], epochs=1, evaluate=[{"x": x}], callbacks=[watch])
    return worst([student(x)], [watch.seen[-1]])


class Heads(Net):
    """Two heads, one of which is left out in training by the second rank."""

    def __init__(self, width):
        super().__init__(width)
        self.other = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.other(x) + (0 if self.training and RANK else self.head(x))


def dropped():
    """The student of each rank after training where the second one has no gradient for a head."""
    torch.manual_seed(0)
    run = hb.Distillation(Heads(8).double(), Heads(6).double(), [hb.loss("kd_ce")], catalogue=PACK)
    run.fit([pair[RANK] for pair in batches()], epochs=1, out_of_memory="halve")
    return [p.detach().sum().item() for p in run.student.parameters()]


def partly(student):
    """Its stem alone is wrapped."""
    student.stem = Replica(student.stem)
    return student


def written():
    """What is in the folder of a fit in two processes."""
    run, place = hb.Distillation(nets()[0], nets()[1], both(), catalogue=PACK), Path(sys.argv[3]) / "written"
    callbacks = [hb.callback(name) for name in ("checkpoint", "metrics", "weights")]
    run.fit([pair[RANK] for pair in batches()], epochs=1, output=place, callbacks=callbacks)
    return sorted(path.name for path in place.glob("[!.]*")), len((place / "metrics.jsonl").read_text().splitlines())


class Scored:
    """A metric that each rank has for itself: only that of the first is better each time."""

    def eval_end(self, state):
        state.metrics["loss"] = float(state.step if RANK else -state.step)


def best():
    """The step whose student was kept."""
    run, place = hb.Distillation(nets()[0], nets()[1], both(), catalogue=PACK), Path(sys.argv[3]) / "kept"
    callbacks = [Scored(), hb.callback("best", metric="loss")]
    parts = [pair[RANK] for pair in batches()]
    run.fit(parts, epochs=3, evaluate=[batches()[0][0]], output=place, callbacks=callbacks)
    return json.loads((place / "best/metrics.json").read_text())["step"]


def mixed(*numbers):
    """The tasks that were drawn of the data of two, of which each rank has a part."""
    tasks = {name: hb.Task(teacher=nets()[0], losses=both()) for name in "ab"}
    run, seen = hb.Distillation(None, nets()[1], tasks=tasks, catalogue=PACK), []

    class Seen:
        def batch_ready(self, state):
            seen.append(state.task)

    parts = {name: [pair[RANK] for pair in batches()][: numbers[RANK]] for name in "ab"}
    parts["b"] = [{"x": batch["x"][: 1 + 2 * RANK]} for batch in parts["b"]]
    try:
        run.fit(parts, steps=12, callbacks=[Seen()])
    except hb.errors.DataError as error:
        return str(error)
    return seen


class Stream(IterableDataset):
    """Three batches in the first rank, five in the second; nobody says so."""

    def __iter__(self):
        yield from [pair[RANK] for pair in batches()][: 3 + 2 * RANK]


def streamed():
    """In which steps epochs end; each ends with an evaluation, for which both are needed."""
    run, seen = hb.Distillation(nets()[0], nets()[1], both(), catalogue=PACK), []

    class Ends:
        def eval_end(self, state):
            seen.append(state.step)

    stream = DataLoader(Stream(), batch_size=None)
    run.fit(stream, steps=5, accumulate=2, evaluate=[batches()[0][0]], callbacks=[Ends()])
    return seen


def unshared():
    """Why a student with a parameter without dimensions is not shared out."""
    student = nets()[1]
    student.scale = nn.Parameter(torch.ones(()))
    try:
        everyone(student)
    except hb.errors.ConfigError as error:
        return str(error)


def left():
    """How many wrappers a fit leaves in memory, with nobody collecting them."""
    gc.collect()
    gc.disable()
    fitted(nets()[1], both(), [pair[RANK] for pair in batches()], 2)
    found = sum(type(each) is Replica for each in gc.get_objects())
    gc.enable()
    return found


STATIC = partial(Replica, static_graph=True)
KEPT = partial(shard, reshard_after_forward=False)
CASES = {
    "ddp hidden": lambda: train(Replica, hidden),
    "ddp both": lambda: train(Replica, both),
    "ddp static hidden": lambda: train(STATIC, hidden),
    "ddp adamw twice": lambda: train(Replica, both, sgd=False, fits=2),
    "fsdp hidden": lambda: train(shard, hidden),
    "fsdp both": lambda: train(shard, both),
    "fsdp kept hidden": lambda: train(KEPT, hidden),
    "fsdp root hidden": lambda: train(fully_shard, hidden),
    "fsdp adamw twice": lambda: train(shard, both, sgd=False, fits=2),
    "left": left,
    "plain chunked": lambda: train(lambda student: student, divergences, chunked=True),
    "ddp chunked": unchunked,
    "plain both": lambda: train(lambda student: student, both),
    "plain hidden": lambda: train(lambda student: student, hidden),
    "plain shared": lambda: shared(lambda student: student),
    "ddp shared": lambda: shared(Replica),
    "fsdp shared": lambda: shared(shard),
    "partly both": lambda: train(partly, both),
    "trimmed": trimmed,
    "dropped": dropped,
    "written": written,
    "best": best,
    "mixed": lambda: mixed(4, 4),
    "mixed uneven": lambda: mixed(4, 5),
    "streamed": streamed,
    "unshared": unshared,
    "uneven": lambda: refused([pair[0] for pair in batches()[RANK:]], [batches()[0][0]]),
    "other evaluation": lambda: refused([pair[0] for pair in batches()], [batches()[0][RANK]]),
    "ddp reach": lambda: reached(Replica, both),
    "fsdp reach": lambda: reached(shard, both),
    "fsdp root reach": lambda: reached(fully_shard, both),
}
