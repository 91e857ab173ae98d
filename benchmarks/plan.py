"""What `hookbrew plan` estimates, beside what one process and two gloo ranks have: memory, and the time of a step.

    python benchmarks/plan.py [--json FILE] [--width 256] [--depth 6] [--batch 16]

Memory is counted operation by operation, in a run of its own; time is that of steps with nothing attached.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import machine, write

import hookbrew_plugins
from hookbrew.config import read
from hookbrew.estimate import Hardware, estimated, measured
from hookbrew.estimate.operations import rate
from hookbrew.estimate.peak import Peak
from hookbrew.plan import planned
from hookbrew.plugin import catalogue
from hookbrew.profile import Profiling
from hookbrew.run import built, run
from hookbrew.words import aligned

KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins])
SHARDS = {"DDP": "none", "FSDP2": "student", "FSDP2, both": "both"}
MODULE = '''
import torch
from torch import nn


class Tower(nn.Module):
    """Tokens (B, L) to 3 classes."""

    def __init__(self, width, depth, words=5000):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        layer = lambda: nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, activation="gelu")
        self.blocks = nn.ModuleList(layer() for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids):
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean(1))


def samples(number=512, length=64, words=5000):
    ids = torch.randint(0, words, (number, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int(row[0]) % 3} for row in ids]
'''
CONFIG = """\
output = "runs/none"
pythonpath = ["."]
teacher = {{ factory = "tower:Tower", width = {width}, depth = {depth} }}
student = {{ factory = "tower:Tower", width = {width}, depth = {half} }}
data = {{ batch_size = {batch}, train = {{ factory = "tower:samples" }} }}
train = {{ steps = {steps}, device = "cpu", threads = 1 }}
losses = [{{ type = "kd_ce" }}, {{ type = "ce" }}]
"""


def really(folder: Path, way: str, what: str) -> float:
    """The most bytes of a process, or the seconds of a step, of a run as it is."""
    steps = 3 if what == "memory" else 40
    sets = [f"train.shard='{SHARDS.get(way, 'none')}'", f"train.steps={steps}", f"output=runs/{what}-{way[-5:]}"]
    found = list[float]()
    if what == "memory":
        peak = Peak()
        run("tower.toml", sets, catalogue=KNOWN, quiet=True, overwrite=True, profile=peak)
        return peak.most
    profile = Profiling(show=lambda result, where: found.append(result.plain[1] / 1e3 if result.plain else 0.0))
    run("tower.toml", sets, catalogue=KNOWN, quiet=True, overwrite=True, profile=profile)
    return found[0] if found else 0.0


def ranks(folder: Path, way: str, what: str, processes: int) -> float:
    """The same of several processes, as the first has it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    loop = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    here = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    here |= {"GLOO_SOCKET_IFNAME": loop, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", way, what]
    started = [
        subprocess.Popen(
            command, cwd=folder, env=os.environ | here | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(processes)
    ]
    told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"a process of {way} failed")
    return float(told[0].splitlines()[-1])


def main() -> None:
    """Estimate, measure, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("width", 256), ("depth", 6), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.worker:
        print(really(Path.cwd(), *given.worker))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tower.py").write_text(MODULE)
        sizes = {"width": given.width, "depth": given.depth, "half": (given.depth + 1) // 2, "batch": given.batch}
        (folder / "tower.toml").write_text(CONFIG.format(steps=40, **sizes))
        plan = planned(read(folder / "tower.toml"), KNOWN, quiet=True)
        with built(plan, KNOWN) as made:
            found = measured(made[0])
        product = rate(torch.device("cpu"), torch.float32)
        lines, rows = list[dict[str, Any]](), [["", "MiB", "estimated", "", "ms", "estimated", "", "by FLOPs", ""]]
        plain, flops = (
            estimated(found, Hardware(memory=None, bandwidth=1e9, flops=rate_), 2).lines for rate_ in (None, product)
        )
        for line, other in zip(plain, flops, strict=True):
            peak, seconds = (ranks(folder, line.way, what, line.processes) for what in ("memory", "time"))
            lines.append({"processes": line.processes, "way": line.way, "memory": peak, "estimated": line.peak})
            lines[-1] |= {"seconds": seconds, "step": line.step, "by_flops": other.step}
            cells = [f"{peak / 2**20:.1f}", f"{line.peak / 2**20:.1f}", f"{line.peak / peak:.3f}"]
            cells += [f"{1e3 * seconds:.1f}", f"{1e3 * line.step:.1f}", f"{line.step / seconds:.2f}"]
            cells += [f"{1e3 * other.step:.1f}", f"{other.step / seconds:.2f}"]
            rows.append([f"{line.processes} {line.way}", *cells])
            print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    print("\n".join(aligned(rows, right=range(1, len(rows[0])))))
    write(given.json, {"machine": machine(torch.device("cpu")), "sizes": sizes, "product": product, "lines": lines})


if __name__ == "__main__":
    main()
