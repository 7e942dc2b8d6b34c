"""`lorasynth base`: train the embedded base model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lorasynth.cli.options import CORES, Device, Run, Seed, Workers

app = typer.Typer(help="The embedded base model.", no_args_is_help=True)

Steps = Annotated[int | None, typer.Option(help="Optimiser steps; default: the config's.", min=1)]


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Pipeline folder to write.")],
    run: Run = Path("runs/base"),
    subjects: Annotated[int, typer.Option(help="Subjects drawn for training.", min=64)] = 6_000,
    autoencoder_steps: Steps = None,
    unet_steps: Steps = None,
    batch: Annotated[int | None, typer.Option(help="U-Net samples per step.", min=1)] = None,
    seed: Seed = 0,
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Train the embedded base model on drawn avatars; run again to resume."""
    from lorasynth.base.train import BaseTrainingConfig, train_base
    from lorasynth.device import pick_device
    from lorasynth.pictures.pool import draw_pool, training_subjects

    config = BaseTrainingConfig()
    autoencoder, unet = replace(config.autoencoder, seed=seed), replace(config.unet, seed=seed)
    config = replace(
        config,
        autoencoder=replace(autoencoder, steps=autoencoder_steps or autoencoder.steps),
        unet=replace(unet, steps=unet_steps or unet.steps, batch=batch or unet.batch),
    )
    pool = draw_pool(training_subjects("base", subjects, seed), run / "pictures", workers)
    train_base(pool, config, run, out, pick_device(device))
