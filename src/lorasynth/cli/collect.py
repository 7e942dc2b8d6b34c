"""`lorasynth collect`: train an adapter for each of many subjects."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.cli.options import (
    Anchor,
    Base,
    Device,
    Preset,
    Seed,
    Settings,
    anchor_of,
    override,
    preset_of,
)
from lorasynth.cli.subjects import Avatars, Folder, Pictures, Series, Split, source_of
from lorasynth.errors import CollectionError, ConfigError

Gauge = Annotated[
    str | None,
    typer.Option(help="Gauge of a new library; default: shared where A is, else procrustes."),
]
Encoder = Annotated[
    Path | None,
    typer.Option(
        help="Also embed the subjects with this condition encoder: a folder, or a name that "
        "`lorasynth conditions` lists."
    ),
]
LeastLikeness = Annotated[
    float | None,
    typer.Option(
        help="Adapters whose samples are less like their subjects, to the encoder, stay out."
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="i/n",
        help="Collect part i of n alone, into OUT/parts; `lorasynth library join OUT` joins them.",
    ),
]


def collect(
    out: Annotated[Path, typer.Option("--out", "-o", help="Library to make or to go on with.")],
    folder: Folder = None,
    avatars: Avatars = None,
    split: Split = "train",
    series: Series = "library",
    seed: Seed = 0,
    pictures: Pictures = 10,
    base: Base = Path("bundle/base"),
    preset: Preset = "ours",
    settings: Settings = None,
    gauge: Gauge = None,
    encoder: Encoder = None,
    anchor: Anchor = None,
    least_likeness: LeastLikeness = None,
    shard: Shard = None,
    fleet: Annotated[int, typer.Option(help="Adapters trained at once.", min=1)] = 32,
    device: Device = "auto",
) -> None:
    """Train an adapter for each subject into a library; run again to resume.

    Example: lorasynth collect --avatars 200 -o library --set rank=4 --set steps=300
    --anchor bundle/pretrained
    """
    from lorasynth import collect as room
    from lorasynth.base import BaseModel
    from lorasynth.collect.embedding import embed_library
    from lorasynth.collect.part import Part, begin_part
    from lorasynth.condition import load_encoder
    from lorasynth.device import pick_device
    from lorasynth.library import Library

    recipe = override(preset_of(preset), [f"seed={seed}", *(settings or [])])
    embedder = load_encoder(encoder) if encoder else None
    model = BaseModel.load(base, pick_device(device))
    foretells = anchor_of(anchor, model)
    drawn = {"split": split, "series": series, "seed": seed, "pictures": pictures}
    source = source_of(folder, avatars, drawn, model.picture_size)
    if shard is not None:
        source, out = begin_part(source, out, Part.parse(shard))
    gate = None
    if least_likeness is not None:
        if embedder is None:
            raise ConfigError("--least-likeness needs an encoder that compares: give --encoder")
        gate = room.LikenessGate(base=model, encoder=embedder, least=least_likeness)
    report = room.collect(
        model, source, out, recipe, fleet_size=fleet, gauge=gauge, anchor=foretells, gate=gate
    )
    library, failed = Library.open(out), report.failed
    if failed and not len(library):
        raise CollectionError(
            f"at least one subject must give an adapter, but all {len(failed)} failed, the first "
            f"because: {next(iter(failed.values()))}"
        )
    if embedder:
        embed_library(library, source, embedder)
    pace = report.seconds / max(len(report.collected), 1)
    typer.echo(
        f"{out}: {len(library)} adapters, {len(report.collected)} of them new "
        f"({pace:.1f} s each), {len(failed)} failed"
    )
