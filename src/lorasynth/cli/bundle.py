"""`lorasynth bundle`: make or check the shipped models."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.cli.options import CORES, Device, Run, Workers

app = typer.Typer(help="The shipped bundle.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the bundle.")]


@app.command()
def make(
    out: Folder = Path("bundle"),
    run: Run = Path("runs"),
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Make the bundle from nothing; run again to resume."""
    from lorasynth.device import pick_device
    from lorasynth.experiments.make_bundle import BundleConfig, BundleMaker

    BundleMaker(BundleConfig(), run, pick_device(device), workers).make(out)


@app.command()
def check(bundle: Folder = Path("bundle")) -> None:
    """Compare every file of a bundle with its manifest."""
    from lorasynth.experiments.bundle import verify

    verify(bundle)
    typer.echo(f"{bundle} is intact")
