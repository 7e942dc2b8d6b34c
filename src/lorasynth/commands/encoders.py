"""`lorasynth encoders`: condition encoders as folders, trained or by name; the judge."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.options import CORES, Device, Run, Seed, Settings, Workers, override

app = typer.Typer(help="Condition encoders and the attribute judge.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
Series = Annotated[str, typer.Option(help="Series of training subjects; series share none.")]
Subjects = Annotated[int, typer.Option(help="Subjects drawn for training.", min=1)]

Siblings = Annotated[int, typer.Option(help="Subjects who share all colours.", min=1)]


@app.command()
def make(
    name: Annotated[str, typer.Argument(help="As `lorasynth conditions` lists it.")],
    out: Out,
    settings: Settings = None,
) -> None:
    """Save an encoder that comes trained as a folder, to set its options or to pass it on.

    Example: lorasynth encoders make onnx:arcface.onnx -o encoder --set std=128
    --set detector=insightface:buffalo_l --set licence=MIT
    """
    import torch

    from lorasynth.condition.named import by_name
    from lorasynth.core.atomic import make_parent

    encoder, argument = by_name(name)
    config = override(encoder.configure(argument), settings)
    make_parent(out)
    made = encoder.build(config, torch.device("cpu"))
    made.save(out)
    typer.echo(
        f"{out}: {made.name}, {made.image_size} pixels to {made.width} numbers, licence of the "
        f"weights: {made.licence}"
    )


@app.command()
def attributes(
    library: Annotated[
        Path, typer.Argument(help="Library whose table has them.", show_default=False)
    ],
    out: Out,
    column: Annotated[
        list[str] | None, typer.Option(help="Column of the table; may be repeated.")
    ] = None,
    identity: Annotated[
        str | None, typer.Option(help="Encoder of images beside the attributes.")
    ] = None,
) -> None:
    """Make an encoder of attributes in words, alone or beside what images show.

    Example: lorasynth encoders attributes library --column glasses --column top
    --identity bundle/encoders/avatar -o encoder, then lorasynth library embed, train, and
    lorasynth synth photo.png --attribute glasses=round -o me.safetensors
    """
    from lorasynth.condition import AttributeEncoder, AttributesConfig, load_encoder
    from lorasynth.library import Library

    rows = Library.open(library).table.to_pylist()
    config = AttributesConfig.of(rows, column or ())
    encoder = AttributeEncoder(config, None if identity is None else load_encoder(identity))
    encoder.save(out)
    stated = "; ".join(f"{name}: {', '.join(v)}" for name, v in config.attributes.items())
    typer.echo(f"{out}: {encoder.width} numbers; {stated}")


@app.command()
def reader(
    network: Annotated[
        Path,
        typer.Argument(
            help="Folder of a network that `lorasynth encoders judge` trained; not the one that "
            "measures.",
            show_default=False,
        ),
    ],
    out: Out,
    name: Annotated[str, typer.Option(help="Name of the encoder.")] = "reader",
) -> None:
    """Make an encoder of what can be read off an avatar: hair, facial hair, glasses."""
    from lorasynth.avatars.judge import AttributeJudge
    from lorasynth.avatars.reader import AttributeReader

    encoder = AttributeReader(AttributeJudge.load(network), name)
    encoder.save(out)
    typer.echo(f"{out}: {encoder.width} numbers")


@app.command()
def join(
    parts: Annotated[
        list[str],
        typer.Argument(help="Two encoders or more: folders or names.", show_default=False),
    ],
    out: Out,
) -> None:
    """Make one encoder of several: who it is, and what its images show.

    Example: lorasynth encoders join insightface:buffalo_l clip:hub:openai/clip-vit-base-patch32
    -o encoder
    """
    from lorasynth.condition import JoinedEncoder, load_encoder

    encoder = JoinedEncoder([load_encoder(part) for part in parts])
    encoder.save(out)
    typer.echo(f"{out}: {encoder.name}, {encoder.width} numbers, licences: {encoder.licence}")


@app.command()
def train(
    out: Out,
    name: Annotated[str, typer.Option(help="Name of the encoder.")] = "avatar",
    trunk: Annotated[str, typer.Option(help="Architecture: residual or separable.")] = "residual",
    series: Series = "base",
    subjects: Subjects = 6_000,
    siblings: Siblings = 4,
    settings: Settings = None,
    run: Run = Path("runs/encoders"),
    seed: Seed = 0,
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Train one avatar encoder with the ArcFace loss; run again to resume.

    Example: lorasynth encoders train -o encoder --name mine --set optimisation.steps=1000
    """
    from lorasynth.avatars.arcface import ArcFaceConfig, train_encoder
    from lorasynth.avatars.encoder import AvatarEncoderConfig
    from lorasynth.avatars.pool import draw_pool, training_subjects
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.config import from_dict
    from lorasynth.core.device import pick_device

    encoder = from_dict(AvatarEncoderConfig, {"name": name, "trunk": trunk})
    config = override(ArcFaceConfig(), [f"optimisation.seed={seed}", *(settings or [])])
    make_parent(out, run)
    drawn = training_subjects(series, subjects, seed, siblings, encoder.image_size)
    pool = draw_pool(drawn, run / "images", workers)
    checkpoint = run / f"{name}.safetensors"
    train_encoder(pool, encoder, config, checkpoint, pick_device(device)).cpu().save(out)
    typer.echo(out)


@app.command()
def judge(
    out: Out,
    series: Series = "base",
    subjects: Subjects = 6_000,
    settings: Settings = None,
    run: Run = Path("runs/encoders"),
    seed: Seed = 0,
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Train the judge that reads attributes off images; run again to resume."""
    from lorasynth.avatars.judge import JudgeConfig, train_judge
    from lorasynth.avatars.pool import draw_pool, training_subjects
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.device import pick_device

    config = override(JudgeConfig(), [f"optimisation.seed={seed}", *(settings or [])])
    make_parent(out, run)
    drawn = training_subjects(series, subjects, seed, size=config.image_size)
    pool = draw_pool(drawn, run / "images", workers)
    train_judge(pool, config, run / "judge.safetensors", pick_device(device)).cpu().save(out)
    typer.echo(out)
