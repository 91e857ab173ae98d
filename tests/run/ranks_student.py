"""What each of two gloo ranks does for test_student_ranks.py: a run whose student is made out of its teacher."""

import os
import sys

import hookbrew_plugins
from hookbrew.errors import HookbrewError
from hookbrew.plugin import catalogue
from hookbrew.run import run

os.chdir(sys.argv[3])
KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins])


def train(name, *sets):
    """How a run of its own ended."""
    try:
        return {"step": run("toy.toml", [*sets, f"output=runs/{name}"], catalogue=KNOWN, quiet=True).step}
    except HookbrewError as error:
        return {"error": str(error)}


CASES = {
    "ddp": lambda: train("ddp"),
    "fsdp": lambda: train("fsdp", "train.shard='both'"),
    "wrong": lambda: train("wrong", "student.keep={ layers = [2] }"),
}
