"""What each of two gloo ranks does for test_profile.py; ../rank.py runs the cases."""

import os
import sys
from pathlib import Path

from torch import distributed

import hookbrew_plugins
from hookbrew.plugin import catalogue
from hookbrew.profile import Profiling
from hookbrew.run import run

RANK = distributed.get_rank()
FOLDER = Path(sys.argv[3])
os.chdir(FOLDER)
KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins])


def profiled(name, *sets):
    """The steps that this rank measured, the files of the run's profile, and the student's bytes."""
    found = []

    def make():
        shown = Profiling(show=lambda result, where: found.append(result))
        run("toy.toml", [*sets, f"output=runs/{name}"], catalogue=KNOWN, quiet=True, profile=shown)
        plain = f"{name}-plain"
        run("toy.toml", [*sets, f"output=runs/{plain}"], catalogue=KNOWN, quiet=True)
        distributed.barrier()
        one, two = ((FOLDER / f"runs/{each}/final/student.safetensors").read_bytes() for each in (name, plain))
        return {
            "steps": [result.steps for result in found],
            "processes": [result.facts["processes"] for result in found],
            "groups": sorted({row.group for result in found for row in result.rows}),
            "losses": sorted({row.name for result in found for row in result.rows if row.group == "losses"}),
            "files": sorted(path.name for path in (FOLDER / f"runs/{name}/profile").iterdir()),
            "same": one == two,
        }

    return make


CASES = {
    "ddp": profiled("ddp", "train.accumulate=2", "train.epochs=4"),
    "fsdp": profiled("fsdp", "train.shard='both'"),
}
