"""`lorasynth bundle`: make or check the shipped models."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.options import (
    CORES,
    Device,
    Run,
    Seed,
    Settings,
    Workers,
    as_typed,
    override,
)

app = typer.Typer(help="The shipped bundle.", no_args_is_help=True)

Only = Annotated[
    str | None,
    typer.Option(
        help="Make this stage alone: perception, autoencoder, base, judge, avatar, avatar-second, "
        "pretrained, library, codec or synthesizer. Judge and encoders need no other stage, so "
        "several processes can make them side by side."
    ),
]
Folder = Annotated[Path, typer.Argument(help="Folder of the bundle.")]


@app.command()
def make(
    out: Folder = Path("bundle"),
    run: Run = Path("runs"),
    only: Only = None,
    workers: Workers = CORES,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Make the bundle from nothing; run again to resume."""
    from lorasynth.avatars.make_bundle import BundleConfig, BundleMaker
    from lorasynth.core.device import pick_device

    config = override(BundleConfig(), settings)
    command = as_typed(["lorasynth", "bundle", "make"], settings)
    maker = BundleMaker(config, run, pick_device(device), workers, command)
    if only is None:
        maker.make(out)
    else:
        maker.stages.make(only)


@app.command()
def measure(
    bundle: Folder = Path("bundle"),
    cache: Annotated[
        Path, typer.Option(help="Folder for trained adapters and measurements.")
    ] = Path("runs/evaluation"),
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Measure a bundle again, and write the figures into its manifest; run again to resume."""
    from lorasynth.avatars.make_bundle import MeasuresConfig, measure_bundle
    from lorasynth.core.device import pick_device

    config = override(MeasuresConfig(), settings)
    command = as_typed(["lorasynth", "bundle", "measure"], settings)
    measure_bundle(bundle, config, cache, pick_device(device), command)


@app.command()
def parts(
    bundle: Folder = Path("bundle"),
    json: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure the embedded parts: does the judge judge, the encoders identify, the base follow?"""
    from rich.pretty import pprint

    from lorasynth.avatars.bundle import Bundle
    from lorasynth.avatars.parts import PartsConfig, parts_report
    from lorasynth.core.atomic import write_json
    from lorasynth.core.device import pick_device

    opened = Bundle.open(bundle, pick_device(device))
    encoders = [opened.first, opened.second]
    report = parts_report(opened.base, encoders, opened.judge, PartsConfig(seed=seed))
    pprint(report, expand_all=True)
    if json is not None:
        write_json(json, report)


@app.command()
def check(bundle: Folder = Path("bundle")) -> None:
    """Compare every file of a bundle with its manifest."""
    from lorasynth.avatars.bundle import verify
    from lorasynth.core.places import local

    verify(local(bundle))
    typer.echo(f"{bundle} is intact")
