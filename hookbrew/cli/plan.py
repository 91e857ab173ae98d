"""`hookbrew plan`: what a training would need on several GPUs."""

from __future__ import annotations

import json

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import config_file, settings

PCIE = "25GB/s"
"""Of PCIe 4: what two GPUs have between them at least."""


class Amount(click.ParamType[float]):
    """A number with a unit."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        from hookbrew.estimate.amount import BYTES, FLOPS, RATES, amount

        try:
            return amount(str(value), {"bytes": BYTES, "rate": RATES, "flops": FLOPS}[self.name])
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@config_file
@settings
@click.option("--gpus", type=click.IntRange(1), required=True, metavar="N", help="The table has 1, 2, 4 ... N.")
@click.option("--memory", type=Amount("bytes"), metavar="SIZE", help="Of each GPU, 80GiB: says what fits.")
@click.option(
    "--bandwidth", type=Amount("rate"), default=PCIE, show_default=True, metavar="RATE", help="Between GPUs, of each."
)
@click.option(
    "--flops", type=Amount("flops"), metavar="RATE", help="What each GPU reaches, 300T; the device here if left out."
)
@click.option("--json", "as_text", is_flag=True, help="Print all numbers as JSON.")
@click.option("--quiet", is_flag=True, help="Do not say what is being measured.")
@click.pass_obj
def plan(
    context: Context,
    config: str,
    sets: tuple[str, ...],
    gpus: int,
    memory: float | None,
    bandwidth: float,
    flops: float | None,
    as_text: bool,
    quiet: bool,
) -> None:
    """Estimate memory and step time on several GPUs.

    Some real steps are made here, on the CPU too, with the first batch; nothing is written. From what they had in
    memory and computed, the table says for DDP and FSDP2 what each process would have, by part, how long a step would
    take, and with --memory what fits, up to which batch.

    --flops is what a GPU reaches in such a training, often a third of what its data sheet says.
    """
    from hookbrew.estimate import Hardware, page
    from hookbrew.estimate.run import estimates

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    hardware = Hardware(memory=memory, bandwidth=bandwidth, flops=flops)
    found = estimates(config, sets, catalogue=context.catalogue(), most=gpus, hardware=hardware, say=say)
    if as_text:
        every = {name: page.data(each) for name, each in found.items()}
        click.echo(json.dumps(every.get("", every), indent=2))
        return
    click.echo("\n\n".join(page.text(each, name) for name, each in found.items()))
