"""What each of two gloo ranks does for test_cache_ranks.py; ../rank.py runs the cases."""

import os
import sys
from pathlib import Path

import hookbrew_plugins
from hookbrew.errors import HookbrewError
from hookbrew.keeping import keep
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
    "refused": lambda: train("two-refused", "cache.folder=built", "seed=9"),
}
