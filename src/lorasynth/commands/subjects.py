"""Options that say whose images to learn from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorasynth.commands.options import PORTRAIT
from lorasynth.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasynth.images import SubjectSource

Folder = Annotated[
    Path | None,
    typer.Option(
        help="Subjects: a folder with a folder of images for each, or tar files (webdataset's "
        "names: ann.0.jpg, ann.0.txt) or Parquet files (columns id, image, caption)."
    ),
]
Avatars = Annotated[int | None, typer.Option(help="Subjects: this many drawn avatars.")]
Split = Annotated[str, typer.Option(help="Avatars' split: train, validation, test.")]
Series = Annotated[str, typer.Option(help="Avatars' series; series share none.")]
Images = Annotated[int, typer.Option(help="Images of each avatar.", min=1)]


def source_of(
    folder: Path | None,
    avatars: int | None,
    drawn: dict[str, Any],
    size: int,
    caption: str = PORTRAIT,
) -> "SubjectSource":
    """Subjects from a folder, or `avatars` drawn ones with the options `drawn`.

    Avatars are drawn with `size` pixels; a photo of the folder that has no caption of its own has
    `caption`.

    Raises:
        ConfigError: neither is given, or both.
        ImageError: the folder holds no subjects.
    """
    from lorasynth.avatars.drawing import AvatarSubjects
    from lorasynth.core.config import from_dict
    from lorasynth.images import subjects_in

    if folder is not None and avatars is None:
        return subjects_in(folder, caption)
    if avatars is None or folder is not None:
        raise ConfigError("subjects must come from either --folder or --avatars: give exactly one")
    return from_dict(AvatarSubjects, {**drawn, "count": avatars, "size": size})
