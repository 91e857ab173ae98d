"""What each of two gloo ranks does for test_cache_ranks.py; ../rank.py runs the cases."""

import os
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler

import hookbrew as hb
import hookbrew_plugins
from hookbrew.errors import HookbrewError
from hookbrew.keeping import keep
from hookbrew.loop import Pad
from hookbrew.plugin import catalogue
from hookbrew.run import run

os.chdir(Path(sys.argv[3]))
KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins])


def runs():
    return sys.modules["taughtland"].Table.runs if "taughtland" in sys.modules else 0


def train(name, *sets):
    """How often the teacher ran here, or the error."""
    before = runs()
    try:
        run("toy.toml", [*sets, f"output=runs/{name}"], catalogue=KNOWN, quiet=True)
    except HookbrewError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return runs() - before


def build(*sets):
    """What was added by both, and how often the teacher ran here."""
    before = runs()
    (told,) = keep("toy.toml", sets, catalogue=KNOWN, track=lambda batches, number, title: batches)
    return {"fresh": told.fresh, "ran": runs() - before}


def fit(seed=0, **options):
    """How often the teacher ran here in a fit on this process's part of the data, and the student; or the error."""
    made, before = sys.modules["taughtland"], runs()
    torch.manual_seed(seed)
    run = hb.Distillation(made.Table(), made.Net(), [hb.loss("kd_ce", temperature=2)], catalogue=KNOWN)
    rows, pad = made.samples(), Pad({"input_ids": 0, "attention_mask": 0})
    data = DataLoader(rows, batch_size=4, sampler=DistributedSampler(rows), collate_fn=pad)
    try:
        run.fit(data, epochs=3, **options)
    except HookbrewError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"ran": runs() - before, "student": [p.double().sum().item() for p in run.student.parameters()]}


UNEVEN = ["data.batch_size=5", "data.train.number=26"]
CASES = {
    "plain": lambda: train("two-plain"),
    "first": lambda: train("two-first", "cache.folder=two"),
    "second": lambda: train("two-second", "cache.folder=two"),
    "of one": lambda: train("two-of-one", "cache.folder=one"),
    "uneven": lambda: train("two-uneven", *UNEVEN),
    "uneven cached": lambda: train("two-uneven-cached", "cache.folder=two", *UNEVEN),
    "built": lambda: build("cache.folder=built"),
    "from built": lambda: train("two-built", "cache.folder=built", "cache.missing=refuse"),
    "fit": lambda: fit(),
    "fit first": lambda: fit(cache="fitted"),
    "fit second": lambda: fit(cache={"folder": "fitted", "missing": "refuse"}),
    "fit refused": lambda: fit(1, cache="fitted"),
    "refused": lambda: train("two-refused", "cache.folder=built", "seed=9"),
}
