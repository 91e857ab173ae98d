"""One of two gloo ranks: `python rank.py SCRIPT RANK FOLDER` runs every case of a script and writes FOLDER/RANK.json.

A script has `CASES`, functions by name, each of which gives what JSON can write. The fixture `launched` starts the
ranks.
"""

import json
import os
import re
import runpy
import socket
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed


def loopback():
    """gloo would look up the host's name, which a sandbox may not know."""
    names = [name for _, name in socket.if_nameindex() if re.fullmatch(r"lo\d*", name)]
    if names:
        os.environ["GLOO_SOCKET_IFNAME"] = names[0]


def main(script, rank, folder):
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    loopback()
    meet = f"file://{folder / 'meet'}"
    distributed.init_process_group("gloo", meet, timedelta(seconds=60), world_size=2, rank=rank)
    sys.path.insert(0, str(script.parent))
    result = {}
    for name, case in runpy.run_path(str(script))["CASES"].items():
        print(f"{time.monotonic():.1f}", name, flush=True)
        result[name] = case()
    (folder / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
