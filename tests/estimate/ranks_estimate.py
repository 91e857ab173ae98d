"""What each of two gloo ranks has in memory, for test_estimate.py; ../rank.py runs the cases."""

import os
import sys
from functools import partial
from pathlib import Path

import hookbrew_plugins
from hookbrew.plugin import catalogue

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.estimate.peaks import peak
from tests.estimate.towers import FAST, HEAVY

os.chdir(sys.argv[3])
KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins])
SHARDS = {"DDP": "none", "FSDP2": "student", "FSDP2, both": "both"}

CASES = {
    f"{heavy} {way}": partial(
        peak, "tower.toml", [*sets, f"train.shard='{shard}'", f"output=runs/{heavy}-{shard}"], KNOWN
    )
    for heavy, sets in HEAVY.items()
    if (heavy in FAST) == ("HOOKBREW_HEAVY" not in os.environ)
    for way, shard in SHARDS.items()
}
