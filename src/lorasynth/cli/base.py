"""`lorasynth base`: train the embedded base model."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.cli.options import CORES, Base, Device, Run, Seed, Settings, Workers, override

app = typer.Typer(help="The embedded base model.", no_args_is_help=True)

Perception = Annotated[
    Path | None,
    typer.Option(
        help="A judge (lorasynth encoders judge) whose feature maps also train the autoencoder, "
        "which keeps small features; none: pixels alone."
    ),
]


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Pipeline folder to write.")],
    run: Run = Path("runs/base"),
    perception: Perception = None,
    subjects: Annotated[int, typer.Option(help="Subjects drawn for training.", min=1)] = 6_000,
    settings: Settings = None,
    seed: Seed = 0,
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Train the embedded base model on drawn avatars; run again to resume.

    Example: lorasynth base train -o base --perception judge --set unet.steps=3000
    """
    from lorasynth.atomic import make_parent
    from lorasynth.base.train import BaseTrainingConfig, train_autoencoder, train_base
    from lorasynth.condition import AttributeJudge
    from lorasynth.device import pick_device
    from lorasynth.pictures.pool import draw_pool, training_subjects

    seeds = [f"autoencoder.seed={seed}", f"unet.seed={seed}"]
    config = override(BaseTrainingConfig(), [*seeds, *(settings or [])])
    make_parent(out, run)
    pool = draw_pool(training_subjects("base", subjects, seed), run / "pictures", workers)
    on = pick_device(device)
    maps = AttributeJudge.load(perception).to(on).feature_maps if perception else None
    autoencoder = run / "autoencoder"
    if not autoencoder.exists():
        train_autoencoder(pool, config, run, autoencoder, on, maps)
    train_base(pool, config, autoencoder, run, out, on)
    typer.echo(out)


@app.command()
def grid(
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")],
    base: Base = "bundle/base",
    columns: Annotated[int, typer.Option(help="Samples of each caption.", min=1)] = 8,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw what the base model makes of captions: a grid of captions by samples."""
    from lorasynth.atomic import make_parent
    from lorasynth.base import BaseModel
    from lorasynth.device import pick_device
    from lorasynth.experiments.caption_grid import caption_grid, draw_caption_grid

    make_parent(out)
    draw_caption_grid(*caption_grid(BaseModel.load(base, pick_device(device)), columns, seed), out)
    typer.echo(out)
