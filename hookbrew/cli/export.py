"""`hookbrew export`: the student of a run, in files that need no hookbrew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import settings

if TYPE_CHECKING:
    from hookbrew.export import Exported

FORMATS = ("safetensors", "transformers", "torch-export", "onnx")


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--to", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="[default: transformers, or safetensors]")
@click.option("--checkpoint", default="final", show_default=True, help='final, best, or "step 120".')
@click.option("--stage", metavar="NAME", help="Of several stages: whose student; the last one's when left out.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Convert the weights first.")
@click.option("--tolerance", type=float, help="Largest relative difference.  [default: 1e-4 for onnx, else 1e-6]")
@click.option("--batches", type=click.IntRange(1), default=4, show_default=True, help="How many are compared.")
@settings
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@click.option("--json", "as_text", is_flag=True, help="Print JSON.")
@click.pass_obj
def export(
    context: Context,
    run: Path,
    to: Path,
    kind: str | None,
    checkpoint: str,
    stage: str | None,
    dtype: str | None,
    tolerance: float | None,
    batches: int,
    sets: tuple[str, ...],
    overwrite: bool,
    as_text: bool,
) -> None:
    """Write a trained student for use without hookbrew.

    RUN is a run folder. What is written into DIR is loaded in a fresh process that cannot import hookbrew, and its
    outputs on the run's data are compared with the student's: DIR stands, with a model card, when they agree, and not
    before.
    """
    from hookbrew.export import export as exporting

    made = exporting(
        run,
        to,
        format=kind,
        checkpoint=checkpoint,
        stage=stage,
        dtype=dtype,
        tolerance=tolerance,
        batches=batches,
        overwrite=overwrite,
        sets=sets,
        known=context.catalogue(),
    )
    if as_text:
        import attrs

        click.echo(json.dumps(attrs.asdict(made), indent=2, default=str))
        return
    for line in told(made):
        click.echo(line)


def told(made: Exported) -> list[str]:
    """What is printed of an export."""
    from hookbrew.report.head import size
    from hookbrew.words import aligned

    agreed = (
        f"{made.batches} batches in a fresh process without hookbrew: differs by {made.difference:.2g}, "
        f"{made.relative:.2g} of its size ({made.tolerance:.2g} allowed)"
    )
    alone = "its tensors, bit for bit; its class needs hookbrew"
    shapes = [f"{name} ({', '.join(map(str, table['shape']))})" for name, table in made.inputs.items()]
    rows = [
        ("student", f"{made.model} of {made.run}, {made.checkpoint}; {made.parameters:,} parameters"),
        ("inputs", "; ".join(shapes)),
        ("outputs", ", ".join(made.outputs)),
        ("files", ", ".join(f"{name} {size(count)}" for name, count in made.files.items())),
        ("compared", agreed if made.compared == "outputs" else alone),
        *(("note", note) for note in made.notes),
        ("done", f"{made.folder} ({made.format}, {size(made.bytes)})"),
    ]
    return aligned(rows)
