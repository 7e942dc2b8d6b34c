"""`lorasynth collect`: train an adapter for each of many subjects."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorasynth.cli.options import Base, Device, Seed, Settings, override
from lorasynth.errors import CollectionError, ConfigError

if TYPE_CHECKING:
    from lorasynth.pictures import SubjectSource

Folder = Annotated[
    Path | None, typer.Option(help="Subjects: a folder with a folder of pictures for each.")
]
Avatars = Annotated[int | None, typer.Option(help="Subjects: this many drawn avatars.")]
Pictures = Annotated[int, typer.Option(help="Pictures of each avatar.", min=1)]
Gauge = Annotated[
    str | None,
    typer.Option(help="Gauge of a new library; default: shared where A is, else procrustes."),
]
Encoder = Annotated[
    Path | None, typer.Option(help="Also embed the subjects with this condition encoder.")
]


def collect(
    out: Annotated[Path, typer.Option("--out", "-o", help="Library to make or to go on with.")],
    folder: Folder = None,
    avatars: Avatars = None,
    split: Annotated[str, typer.Option(help="Avatars' split: train, validation, test.")] = "train",
    series: Annotated[str, typer.Option(help="Avatars' series; series share none.")] = "library",
    seed: Seed = 0,
    pictures: Pictures = 10,
    base: Base = Path("bundle/base"),
    preset: Annotated[str, typer.Option(help="Recipe: ours or weights2weights.")] = "ours",
    settings: Settings = None,
    gauge: Gauge = None,
    encoder: Encoder = None,
    fleet: Annotated[int, typer.Option(help="Adapters trained at once.", min=1)] = 32,
    device: Device = "auto",
) -> None:
    """Train an adapter for each subject into a library; run again to resume.

    Example: lorasynth collect --avatars 200 -o library --set rank=4 --set steps=300
    """
    from lorasynth import collect as room
    from lorasynth.base import BaseModel
    from lorasynth.collect.embedding import embed_library
    from lorasynth.condition import load_encoder
    from lorasynth.device import pick_device
    from lorasynth.library import Library

    if preset not in room.PRESETS:
        raise ConfigError(f"--preset must be one of {', '.join(room.PRESETS)}, but is {preset!r}")
    recipe = override(room.PRESETS[preset], [f"seed={seed}", *(settings or [])])
    embedder = load_encoder(encoder) if encoder else None
    model = BaseModel.load(base, pick_device(device))
    drawn = {"split": split, "series": series, "seed": seed, "pictures": pictures}
    source = _source(folder, avatars, drawn, model.picture_size)
    report = room.collect(model, source, out, recipe, fleet_size=fleet, gauge=gauge)
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


def _source(
    folder: Path | None, avatars: int | None, drawn: dict[str, Any], size: int
) -> "SubjectSource":
    from lorasynth.config import from_dict
    from lorasynth.pictures import AvatarSubjects, FolderSubjects

    if folder is not None and avatars is None:
        return FolderSubjects(folder, size)
    if avatars is None or folder is not None:
        raise ConfigError("subjects must come from either --folder or --avatars: give exactly one")
    return from_dict(AvatarSubjects, {**drawn, "count": avatars, "size": size})
