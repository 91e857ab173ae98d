"""What each of two gloo ranks does for test_ranks.py; ../rank.py runs the cases.

Each case is a run of the toy, begun by both ranks together; the first one says what is in its folder afterwards.
"""

import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from ranks_sets import BOTH, CALLBACKS, CAPTURED, CRD, HALVE, NORM, SHARD, SURGERY, UNEVEN
from torch import distributed

import hookbrew_plugins
from hookbrew.errors import HookbrewError
from hookbrew.plugin import catalogue, hookimpl, options
from hookbrew.run import resume, run

RANK = distributed.get_rank()
FOLDER = Path(sys.argv[3])
os.chdir(FOLDER)


@options
class Alone:
    """Something that only one rank meets, at the end of a step."""

    at: int
    what: str
    rank: int = 1

    def build(self):
        return Meeting(self)


class Meeting:
    def __init__(self, options):
        self.options = options

    def _here(self, state, *what):
        return state.step == self.options.at and self.options.rank == RANK and self.options.what in what

    def step_end(self, state):
        if self._here(state, "SIGTERM", "SIGUSR1"):
            os.kill(os.getpid(), getattr(signal, self.options.what))
        if self._here(state, "stop"):
            state.request_stop("enough")
        if self._here(state, "evaluate"):
            state.request_eval()

    def batch_ready(self, state):
        if self._here(state, "memory") and len(state.batch["input_ids"]) > 1:
            raise torch.OutOfMemoryError("out of memory")

    def grads_ready(self, state):
        pass

    def loss_end(self, state):
        if self._here(state, "nan"):
            state.loss = state.loss * float("nan")


@hookimpl
def hookbrew_register_callbacks(register):
    register("alone", Alone)


KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins, sys.modules[__name__]])


def told(call):
    """How it ended: the step and why, or the error."""
    try:
        state = call()
    except HookbrewError as error:
        return {"error": type(error).__name__, "text": str(error), "code": error.exit_code}
    return {"step": state.step, "reason": state.stop_reason, "samples": state.samples_seen, "metrics": state.metrics}


def train(name, *sets):
    """A run of its own."""
    return told(lambda: run("toy.toml", [*sets, f"output=runs/{name}"], catalogue=KNOWN, quiet=True))


def again(name, *sets, require="exact"):
    """The same goes on; what it was before must not strike again."""
    return told(lambda: resume(f"runs/{name}", sets, catalogue=KNOWN, quiet=True, require=require))


def struck(name, at, *sets):
    """A run that a signal to one rank ends at each of these steps, and that goes on each time."""
    found = []
    for place in range(len(at) + 1):
        callbacks = f"callbacks=[{{type='alone', at={at[place] if place < len(at) else 0}, what='SIGTERM'}}]"
        make = train if place == 0 else partial(again, require="data")
        found.append(make(name, *sets, callbacks))
    return found


def alone(name, at, what, *sets):
    return train(name, *sets, f"callbacks=[{{type='alone', at={at}, what='{what}'}}]")


def cramped():
    """A run of which the second rank's shards do not fit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if RANK:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        return train("cramped", SHARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


CASES = {
    "ddp": lambda: train("ddp"),
    "ddp uneven": lambda: train("ddp-uneven", *UNEVEN),
    "ddp captured": lambda: train("ddp-captured", *CAPTURED, *UNEVEN),
    "ddp callbacks": lambda: train("ddp-callbacks", *CALLBACKS),
    "ddp surgery": lambda: train("ddp-surgery", *SURGERY),
    "ddp tasks": lambda: told(lambda: run("tasks.toml", ["output=runs/ddp-tasks"], catalogue=KNOWN, quiet=True)),
    "ddp stages": lambda: told(lambda: run("stages.toml", ["output=runs/ddp-stages"], catalogue=KNOWN, quiet=True)),
    "fsdp": lambda: train("fsdp", SHARD),
    "fsdp uneven": lambda: train("fsdp-uneven", SHARD, *UNEVEN),
    "fsdp captured": lambda: train("fsdp-captured", BOTH, *CAPTURED, *UNEVEN),
    "fsdp callbacks": lambda: train("fsdp-callbacks", SHARD, *CALLBACKS),
    "fsdp surgery": lambda: train("fsdp-surgery", BOTH, *SURGERY),
    "fsdp stages": lambda: told(
        lambda: run("stages.toml", ["output=runs/fsdp-stages", SHARD], catalogue=KNOWN, quiet=True)
    ),
    "ddp struck": lambda: struck("ddp-struck", [2, 5], *UNEVEN),
    "ddp whole": lambda: struck("ddp-whole", [], *UNEVEN),
    "fsdp struck": lambda: struck("fsdp-struck", [2, 5], SHARD, *UNEVEN),
    "fsdp whole": lambda: struck("fsdp-whole", [], SHARD, *UNEVEN),
    "ddp crd struck": lambda: struck("ddp-crd-struck", [2, 5], *CRD),
    "ddp crd whole": lambda: struck("ddp-crd-whole", [], *CRD),
    "fsdp crd struck": lambda: struck("fsdp-crd-struck", [2, 5], SHARD, *CRD),
    "fsdp crd whole": lambda: struck("fsdp-crd-whole", [], SHARD, *CRD),
    "ddp norm": lambda: train("ddp-norm", *NORM),
    "fsdp norm": lambda: train("fsdp-norm", SHARD, *NORM),
    "ddp ends": lambda: alone("ddp-ends", 4, "SIGTERM", *UNEVEN),
    "fsdp ends": lambda: alone("fsdp-ends", 4, "SIGTERM", SHARD, *UNEVEN),
    "one goes on as two": lambda: again("one-ends", "callbacks=[]", require="data"),
    "one goes on as shards": lambda: again("one-ends-too", "callbacks=[]", SHARD, require="data"),
    "stop": lambda: alone("stop", 4, "stop"),
    "save": lambda: alone("save", 4, "SIGUSR1"),
    "evaluate": lambda: alone("evaluate", 4, "evaluate"),
    "memory": lambda: alone("memory", 4, "memory", HALVE),
    "nan": lambda: alone("nan", 4, "nan"),
    "nan skipped": lambda: alone("nan-skipped", 4, "nan", "train.nonfinite='skip'"),
    "cramped": cramped,
    "exists": lambda: {key: told for key, told in train("ddp").items() if key != "error"},
}
