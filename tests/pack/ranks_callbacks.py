"""What one of two gloo ranks does for test_ranks_callbacks.py; ../rank.py runs the cases.

Each rank trains a wrapped student, and beside it a plain one, on the same batches, in float64.
"""

import copy
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as Replica

import hookbrew as hb
import hookbrew_plugins
from hookbrew.plugin import catalogue

PACK = catalogue(discover=False, plugins=[hookbrew_plugins])


class Losses:
    """What evaluations say."""

    def __init__(self):
        self.seen = []

    def eval_end(self, state):
        self.seen.append(state.metrics["loss"])


def shard(model):
    for layer in model[::2]:
        fully_shard(layer)
    return fully_shard(model)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fit(student, *callbacks):
    """The losses of four evaluations, and the weights at the end: of the average, after steps with the student's."""
    generator, losses = torch.Generator().manual_seed(0), Losses()
    data = [
        {"input": torch.randn(6, 4, generator=generator, dtype=torch.float64), "labels": torch.arange(6) % 3}
        for _ in range(4)
    ]
    run = hb.Distillation(None, student, [hb.loss("ce")], catalogue=PACK)
    run.fit(
        data,
        steps=10,
        optimizer=torch.optim.SGD(student.parameters(), 0.3, momentum=0.9, foreach=False),
        evaluate=data,
        evaluate_every=3,
        callbacks=[hb.callback("evaluate", metrics=["loss"]), losses, *callbacks],
    )
    return losses.seen, [whole(parameter).detach() for parameter in student.parameters()]


def compared(wrap, *callbacks):
    """The largest differences of losses and weights, and whether averaging or freezing made one."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    wrapped, untouched = (copy.deepcopy(plain) for _ in range(2))
    (ours, one), (theirs, other), (_, without) = fit(wrap(wrapped), *callbacks), fit(plain, *callbacks), fit(untouched)
    losses = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    weights = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
    return len(ours), losses, weights, float((one[0] - without[0]).abs().max())


EMA, FREEZE = hb.callback("ema", decay=0.9), hb.callback("freeze", modules=["0"], after=2, until=7)
CASES = {
    "ddp ema": lambda: compared(Replica, EMA),
    "fsdp ema": lambda: compared(shard, EMA),
    "fsdp root ema": lambda: compared(fully_shard, EMA),
    "ddp freeze": lambda: compared(partial(Replica, find_unused_parameters=True), FREEZE),
    "fsdp freeze": lambda: compared(shard, FREEZE),
    "fsdp root freeze": lambda: compared(fully_shard, FREEZE),
}
