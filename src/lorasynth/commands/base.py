"""`lorasynth base`: train the embedded base model."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.options import CORES, Base, Device, Run, Seed, Settings, Workers, override

app = typer.Typer(help="The embedded base model.", no_args_is_help=True)

Perception = Annotated[
    Path | None,
    typer.Option(
        help="A network of attributes (lorasynth encoders judge) whose feature maps train too; "
        "none: pixels and latents alone."
    ),
]

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
Subjects = Annotated[int, typer.Option(help="Subjects drawn for training.", min=1)]


@app.command()
def autoencoder(
    out: Out,
    run: Run = Path("runs/base"),
    perception: Perception = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Autoencoder to start from, of images of the same side or half of it."),
    ] = None,
    subjects: Subjects = 1_984,
    settings: Settings = None,
    seed: Seed = 0,
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Train the base model's autoencoder on drawn avatars; run again to resume.

    Example: lorasynth base autoencoder -o autoencoder --perception judge
    """
    from lorasynth.avatars.autoencoder import perceive, train_autoencoder
    from lorasynth.avatars.denoiser import BaseTrainingConfig
    from lorasynth.avatars.judge import AttributeJudge
    from lorasynth.avatars.pool import draw_pool, training_subjects
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.device import pick_device

    seeds = [f"autoencoder.optimisation.seed={seed}"]
    config, on = override(BaseTrainingConfig(), [*seeds, *(settings or [])]), pick_device(device)
    model = config.model
    make_parent(out, run)
    drawn = training_subjects("base", subjects, seed, size=model.image_size)
    images = draw_pool(drawn, run / "images", workers).images
    maps = perceive(AttributeJudge.load(perception).to(on), model) if perception else None
    checkpoint = run / "autoencoder.safetensors"
    train_autoencoder(images, model, config.autoencoder, checkpoint, out, on, maps, start)
    typer.echo(out)


@app.command()
def train(
    out: Out,
    autoencoder: Annotated[
        Path,
        typer.Option(help="What `lorasynth base autoencoder` wrote.", show_default=False),
    ],
    perception: Perception = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="Another judge, that measures caption following on the way, into the run."
        ),
    ] = None,
    run: Run = Path("runs/base"),
    subjects: Subjects = 6_000,
    settings: Settings = None,
    seed: Seed = 0,
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Train the embedded base model on latents of drawn avatars; run again to resume.

    Example: lorasynth base train -o base --autoencoder autoencoder --judge judge
    --set denoiser.optimisation.steps=3000
    """
    from lorasynth.avatars.denoiser import BaseTrainingConfig, Progress, save_pipeline, train_base
    from lorasynth.avatars.judge import AttributeJudge
    from lorasynth.avatars.pool import training_subjects
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.config import to_dict
    from lorasynth.core.device import pick_device

    seeds = [f"autoencoder.optimisation.seed={seed}", f"denoiser.optimisation.seed={seed}"]
    config, on = override(BaseTrainingConfig(), [*seeds, *(settings or [])]), pick_device(device)
    make_parent(out, run)
    seen = AttributeJudge.load(perception) if perception else None
    watch = Progress(run=run, judge=AttributeJudge.load(judge).to(on)) if judge else None
    drawn = training_subjects("base", subjects, seed, size=config.model.image_size)
    pipeline = train_base(drawn, config, autoencoder, run, on, seen, watch, workers)
    save_pipeline(pipeline, out, to_dict(config))
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
    from lorasynth.avatars.caption_grid import caption_grid, draw_caption_grid
    from lorasynth.base import BaseModel
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.device import pick_device

    make_parent(out)
    draw_caption_grid(*caption_grid(BaseModel.load(base, pick_device(device)), columns, seed), out)
    typer.echo(out)
