"""What each of two gloo ranks does for test_callbacks_theseus.py; ../rank.py runs the cases.

Each rank trains on its half of every batch, in float64.
"""

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel as Replica

import hookbrew as hb
import hookbrew_plugins
from hookbrew.errors import ConfigError
from hookbrew.plugin import catalogue

PACK = catalogue(discover=False, plugins=[hookbrew_plugins])
ARMS = {
    "frozen": {"until": 0.7},
    "open": {"until": 0.7, "freeze": False},
    "halves": {"until": 0.7, "out_of_memory": "halve"},
    "layerwise": {"kind": "layerwise"},
}


class Tower(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(depth)))
        self.head = nn.Linear(6, 3)

    def forward(self, input):
        return self.head(self.layers(self.embed(input)))


def models(wrap):
    torch.manual_seed(0)
    teacher, student = Tower(4).double(), Tower(2).double()
    for name in ("embed", "head"):
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
    return teacher, wrap(student)


def fit(rows, *, kind="theseus", out_of_memory="stop", wrap=lambda student: student, **options):
    """The sums of all parameters, and of their squares, at the end."""
    teacher, student = models(wrap)
    generator = torch.Generator().manual_seed(1)
    data = [
        {
            "input": torch.randn(6, 4, generator=generator, dtype=torch.float64)[rows],
            "labels": (torch.arange(6) % 3)[rows],
        }
        for _ in range(4)
    ]
    losses = [hb.loss("ce")]
    if kind == "layerwise":
        losses = [hb.loss("hidden_mse", student="layers[*]", teacher="layers[1,3]")]
        options["teacher"] = "layers[1,3]"
    torch.manual_seed(5)
    run = hb.Distillation(teacher, student, losses, catalogue=PACK)
    options = {"student": "layers[*]", "teacher": "layers[*]", **options}
    optimizer = torch.optim.AdamW(student.parameters(), 0.05, weight_decay=0.1)
    callbacks = [hb.callback(kind, **options)]
    run.fit(data, steps=12, optimizer=optimizer, callbacks=callbacks, out_of_memory=out_of_memory, accumulate=2)
    return [[float(p.detach().sum()), float(p.detach().square().sum())] for p in student.parameters()]


def half(**options):
    rank = distributed.get_rank()
    return fit(slice(3 * rank, 3 * rank + 3), **options)


def waits():
    try:
        half(wrap=Replica)
    except ConfigError as error:
        return str(error)
    return ""


CASES = {
    **{name: (lambda options=options: half(**options)) for name, options in ARMS.items()},
    "waits": waits,
}
