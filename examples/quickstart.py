"""The case in which people need distillation: few labels, much unlabelled text.

Three runs of hookbrew, each a TOML file beside this one, and a table of what came out:

    teacher.toml      MiniLM, 22.7 M parameters, fine-tuned on 600 labelled questions
    alone.toml        a student cut out of MiniLM, 2 of its 6 layers, 128 of its 384 wide, trained on the same labels
    quickstart.toml   such a student cut out of the teacher, and distilled on 4,331 questions without labels

`python examples/quickstart.py --seeds 3` does it with three seeds and reports mean and spread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
import trec
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForSequenceClassification

from hookbrew.loop import Pad
from hookbrew.plugin import catalogue
from hookbrew.run import run

HERE = Path(__file__).resolve().parent
ARMS = {"teacher": "teacher", "student, 600 labels alone": "alone", "student, distilled": "quickstart"}


@attrs.frozen
class Result:
    """What the table says of one model."""

    accuracy: float
    """The share of the 1,050 held-out questions that it answers right."""
    parameters: int
    megabytes: float
    """The size of its weights on disk."""
    milliseconds: float
    """The time of one of 256 held-out questions, in batches of 32 on one CPU thread, the median of 3 passes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all arms for all seeds; exit with 1 if distillation did not help."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 1 on")
    parser.add_argument("--output", type=Path, default=HERE / "runs", help="where the run folders go")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    results = [arms(seed, options.output / f"seed-{seed}") for seed in range(1, options.seeds + 1)]
    Console(width=100).print(table(results))
    seconds = round(time.monotonic() - start)
    print(
        f"{len(results)} seed(s) in {seconds // 60}:{seconds % 60:02} min; weights, metrics and logs: {options.output}"
    )
    helped = all(r["student, distilled"].accuracy > r["student, 600 labels alone"].accuracy + 0.05 for r in results)
    if not helped:
        print("distillation did not help by 5 points in every seed: something is wrong", file=sys.stderr)
    return 0 if helped else 1


def arms(seed: int, output: Path) -> dict[str, Result]:
    """All three runs with one seed."""
    names = catalogue()
    found = {}
    for label, name in ARMS.items():
        print(f"\n{label} ({name}.toml, seed {seed})", file=sys.stderr)
        sets = [f"seed={seed}", f"output={output / name}"]
        if name == "quickstart":
            sets.append(f"teacher.folder={output / 'teacher' / 'final'}")
        state = run(HERE / f"{name}.toml", sets, catalogue=names, overwrite=True)
        found[label] = result(output / name / "final", state.metrics["accuracy"])
    return found


def result(folder: Path, accuracy: float) -> Result:
    """Load a trained model with nothing of hookbrew, and measure it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Result(accuracy, sum(p.numel() for p in model.parameters()), size / 1e6, timed(model))


def timed(model: nn.Module) -> float:
    """Milliseconds per held-out question."""
    samples = [{k: v for k, v in s.items() if k != "labels"} for s in trec.held_out()[:256]]
    pad = Pad({"input_ids": 0, "attention_mask": 0})
    batches = [pad(list(samples[i : i + 32])) for i in range(0, len(samples), 32)]
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            for batch in batches:
                model(**batch)
            seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return statistics.median(seconds) / len(samples) * 1e3


def table(results: list[dict[str, Result]]) -> Table:
    """One row a model; with several seeds, the mean and the standard deviation over them."""
    title = "TREC questions, 6 classes, 1,050 held out"
    drawn = Table(title=title if len(results) == 1 else f"{title}; mean and spread over {len(results)} seeds")
    drawn.add_column("model")
    for heading in ("accuracy", "parameters", "MB", "ms / example"):
        drawn.add_column(heading, justify="right")
    for label in ARMS:
        rows = [result[label] for result in results]
        scores = [row.accuracy for row in rows]
        spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        drawn.add_row(
            label,
            f"{statistics.mean(scores):.3f}{spread}",
            f"{rows[0].parameters / 1e6:.2f} M",
            f"{rows[0].megabytes:.1f}",
            f"{statistics.median(row.milliseconds for row in rows):.2f}",
        )
    return drawn


if __name__ == "__main__":
    sys.exit(main())
