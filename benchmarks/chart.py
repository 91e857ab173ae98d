"""How benchmarks/peers.py shows what it measured: on the terminal, as Markdown, as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from measure import plotting
from rich.console import Console
from rich.table import Table

BLACK, GREY, OURS, GOAL = "#333333", "#9aa5b1", "#1f77b4", "#d62728"


def spread(line: Mapping[str, Any]) -> str:
    """The 95 % interval."""
    return f"{line['low']:.2f}..{line['high']:.2f}"


def ratios(line: Mapping[str, Any]) -> str:
    """The median, its interval, and the ratio of the fastest steps."""
    return f"{line['middle']:.2f} ({spread(line)}), {line['fastest']:.2f}"


def show(console: Console, job: Mapping[str, Any]) -> None:
    """The figures of one job."""
    table = Table(
        "a step", "ms", "fastest", "median", "95 %", "target", "", "peak, MiB", "of by hand", title=job["title"]
    )
    for name, line in job["lines"].items():
        goal = (f"<= {line['target']:g}", line["verdict"]) if "target" in line else ("", "")
        size = (f"{line['peak'] / 2**20:.2f}", f"{line['memory']:.2f}")
        table.add_row(
            name,
            f"{line['milliseconds']:.1f}",
            f"{line['fastest']:.3f}",
            f"{line['middle']:.3f}",
            spread(line),
            *goal,
            *size,
        )
    console.print(table)


def names(jobs: Mapping[str, Any]) -> list[str]:
    """Everybody who does one of the jobs, in the order of the first that has most of them."""
    return list(
        dict.fromkeys(name for job in sorted(jobs.values(), key=lambda j: -len(j["lines"])) for name in job["lines"])
    )


def markdown(report: Mapping[str, Any]) -> str:
    """Two tables, a column for each job: ratios of time, and of the peak of live tensors."""
    jobs = report["jobs"]
    head = ["", *jobs]
    rows = [["by hand, ms"] + [f"{next(iter(job['lines'].values()))['milliseconds']:.3g}" for job in jobs.values()]]
    sizes = [["by hand, MiB"] + [f"{next(iter(job['lines'].values()))['peak'] / 2**20:.3g}" for job in jobs.values()]]
    for name in names(jobs)[1:]:
        lines = [job["lines"].get(name) for job in jobs.values()]
        rows.append([name] + [ratios(line) if line else "-" for line in lines])
        sizes.append([name] + [f"{line['memory']:.2f}" if line else "-" for line in lines])
    goals = [next((line for line in job["lines"].values() if "target" in line), None) for job in jobs.values()]
    rows.append(["target of hookbrew"] + [f"<= {goal['target']:g} {goal['verdict']}" if goal else "" for goal in goals])
    sizes.append(["target of hookbrew"] + [f"<= {job['most']:g}" for job in jobs.values()])
    return "\n".join([*lined(head, rows), "", *lined(["peak", *jobs], sizes), ""])


def lined(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def plot(path: str, report: Mapping[str, Any]) -> None:
    """A panel for each job: ratios to the loop by hand with their intervals, and a line at the target."""
    pyplot, jobs, machine = plotting(), report["jobs"], report["machine"]
    everybody = names(jobs)[1:]
    columns = min(3, len(jobs))
    deep = -(-len(jobs) // columns)
    size = (2.6 + 3.4 * columns, deep * (0.9 + 0.3 * len(everybody)) + 0.4)
    figure, panels = pyplot.subplots(deep, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for panel in panels.flat[len(jobs) :]:
        panel.set_visible(False)
    for panel, (name, job) in zip(panels.flat, jobs.items(), strict=False):
        drawn(panel, name, job, everybody)
    where = f"{machine['device']}, {machine['threads']} thread(s), torch {machine['torch']}, {machine['date']}"
    what = "time" if machine["cuda"] else "CPU time"
    figure.suptitle(
        f"{what} of a step / that of a plain loop by hand; median, 95 % interval, target (dashed)\n{where}", fontsize=10
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def drawn(panel: Any, name: str, job: Mapping[str, Any], everybody: list[str]) -> None:
    """One panel; who cannot do the job has a dash."""
    most = max(line["high"] for line in job["lines"].values())
    for place, who in enumerate(everybody):
        line = job["lines"].get(who)
        if line is None:
            panel.text(0.02 * most, place, "-", va="center", color=BLACK)
            continue
        middle, ours = line["middle"], "target" in line
        panel.barh(place, middle, color=OURS if ours else GREY, height=0.65)
        panel.plot([line["low"], line["high"]], [place, place], color=BLACK, linewidth=1.2)
        panel.text(0.02 * most, place, f"{middle:.2f}", va="center", fontsize=8, color="white" if ours else BLACK)
    panel.axvline(1.0, color=BLACK, linewidth=0.8)
    panel.axvline(job["target"], color=GOAL, linestyle="--", linewidth=1.2)
    panel.set_title(f"{name} (target {job['target']:g})", fontsize=10)
    panel.set_xlim(0, most * 1.03)
    panel.set_yticks(range(len(everybody)), everybody, fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.set_ylim(len(everybody) - 0.4, -0.6)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
