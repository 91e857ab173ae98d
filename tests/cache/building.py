"""A process that builds a cache: python building.py FOLDER FIRST LAST [LIMIT], or strike FOLDER KILLS SEED MOST."""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from hookbrew.cache import Cache, Full, examples, fingerprint, opened
from hookbrew.errors import CacheError

KIND = Full(tokens=True)
SAMPLES, CLASSES = 4, 256
REPORT = "report"


def sample(number):
    """A batch, the one of its number: its keys and its logits, (SAMPLES, L, CLASSES), 0 at padding."""
    lengths = torch.tensor([1 + (number * 7 + row * 5) % 20 for row in range(SAMPLES)])
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    ids = (torch.arange(mask.numel()).view(mask.shape) + 1000 * number) * mask
    logits = (ids[..., None] * 256 + torch.arange(CLASSES)).float() * mask[..., None]
    return examples({"input_ids": ids, "attention_mask": mask}), logits


def cache(folder):
    teacher = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(teacher.weight)
    return opened(folder, fingerprint(teacher, KIND.facts()))


def build(folder, first, last, largest=2**30):
    """Put batches, and report each that was put."""
    report = os.open(folder.with_name(f"{folder.name}-{REPORT}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with cache(folder).writer(KIND, largest=largest) as writer:
        for number in range(first, last):
            keyed, logits = sample(number)
            writer.put(keyed, {"logits": logits})
            os.write(report, b"%d\n" % number)


def reported(folder):
    """The numbers of the batches that were put."""
    path = folder.with_name(f"{folder.name}-{REPORT}")
    return {int(line) for line in path.read_text().splitlines()} if path.exists() else set()


def lost(folder):
    """What was put and is not there as it was put; and that nothing is told to be damaged."""
    found = Cache(folder)
    assert found.verify() == []
    return [n for n in sorted(reported(folder)) if not same(found, *sample(n))]


def same(found, keyed, logits):
    return not found.missing(keyed) and torch.equal(found.read(keyed)["logits"], logits)


def strike(folder, kills, seed, most):
    """Begin or go on, and kill that process, again and again; what is lost, and how many shards were cut inside.

    most: the number of kills after which it ends though none of them came while a record was written.
    """
    draw, missing, ended = random.Random(seed), list[int](), 0
    cache(folder)
    while ended < kills or (ended < most and not torn(Cache(folder))):
        pid = os.fork()
        if not pid:
            build(folder, 0, 10**6, largest=2**22)
        time.sleep(draw.uniform(0, 0.08))
        if draw.random() < 0.5:
            grown(folder, pid)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        ended += 1
        missing += lost(folder)
    return {"killed": ended, "lost": missing, "put": len(reported(folder)), "torn": torn(Cache(folder))}


def grown(folder, pid):
    """Wait until a process writes records."""
    end = time.monotonic() + 2
    while time.monotonic() < end and not (paths := [*folder.glob(f"shard-{pid}-*.data")]):
        pass
    before = os.stat(paths[-1]).st_size if paths else 0
    while paths and time.monotonic() < end and os.stat(paths[-1]).st_size == before:
        pass


def torn(found):
    """Shards that end in a part of an entry, or in records that no entry names: their process died inside `put`."""
    ends = [
        max((int(s.entries[row]["offset"] + s.entries[row]["bytes"]) for row in s.rows), default=0)
        for s in found.shards.values()
    ]
    return sum(s.cut or end < len(s.data) for s, end in zip(found.shards.values(), ends, strict=True))


if __name__ == "__main__":
    if sys.argv[1] == "strike":
        print(json.dumps(strike(Path(sys.argv[2]), *map(int, sys.argv[3:]))))
    else:
        first, last, *limit = map(int, sys.argv[2:])
        cache(Path(sys.argv[1]))
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit[0], limit[0]))
        try:
            build(Path(sys.argv[1]), first, last)
        except CacheError as error:
            print(error)
