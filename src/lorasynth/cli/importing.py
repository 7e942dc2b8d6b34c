"""`lorasynth import`: LoRA files of others become a library."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.cli.options import CORES


def import_(
    folder: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder tree of LoRA files.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Library to make or to go on with.")],
    gauge: Annotated[str, typer.Option(help="Gauge of a new library.")] = "procrustes",
    workers: Annotated[int, typer.Option(help="Files read at once.", min=1)] = CORES,
) -> None:
    """Gather LoRA files of any known format into a library; run again to go on.

    A file that cannot be used is skipped, with the reason in skipped.json beside the shards.
    """
    from lorasynth.library.foreign import SKIPPED, import_folder

    report = import_folder(folder, out, gauge=gauge, workers=workers)
    for path, reason in report.skipped.items():
        typer.echo(f"skipped {path}: {reason}", err=True)
    typer.echo(
        f"{out}: {len(report.imported)} adapters imported, {len(report.skipped)} files skipped"
        + (f" ({out / SKIPPED})" if report.skipped else "")
    )
