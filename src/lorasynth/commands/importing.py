"""`lorasynth import`: what others trained becomes a library."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from lorasynth.commands.options import CORES


class FolderByDefault(TyperGroup):
    """A group whose command is `folder` where none is named: `lorasynth import downloads`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name before its arguments, if it is left out."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["folder", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=FolderByDefault,
    help="What others trained becomes a library; PATH alone stands for `folder PATH`.",
    no_args_is_help=True,
)

Published = Annotated[
    str,
    typer.Argument(
        metavar="PATH_OR_HUB_ID",
        help="Folder with all_weights.pt, weight_dimensions.pt and identity_df.csv, or "
        "Snapchat/weights2weights.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Library to make or to go on with.")]
GaugeName = Annotated[str, typer.Option(help="Gauge of a new library.")]


@app.command()
def folder(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder tree of LoRA files.", show_default=False)
    ],
    out: Out,
    gauge: GaugeName = "procrustes",
    workers: Annotated[int, typer.Option(help="Files read at once.", min=1)] = CORES,
) -> None:
    """Gather LoRA files of any known format into a library; run again to go on.

    A file that cannot be used is skipped, with the reason in skipped.json beside the shards.
    """
    from lorasynth.library.foreign import SKIPPED, import_folder

    report = import_folder(path, out, gauge=gauge, workers=workers)
    for skipped, reason in report.skipped.items():
        typer.echo(f"skipped {skipped}: {reason}", err=True)
    typer.echo(
        f"{out}: {len(report.imported)} adapters imported, {len(report.skipped)} files skipped"
        + (f" ({out / SKIPPED})" if report.skipped else "")
        + (f"; {report.filled} lack modules, which are zero" if report.filled else "")
    )


@app.command()
def w2w(
    source: Published,
    out: Out,
    gauge: GaugeName = "procrustes",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Type of stored numbers.")
    ] = "float32",
    person: Annotated[
        str, typer.Option(help="Column of the table that says who is shown.")
    ] = "identity",
    embeddings: Annotated[
        Path | None,
        typer.Option(help=".npy with an embedding of each row's images, to tell people apart."),
    ] = None,
) -> None:
    """Read weights2weights' published files into a library; run again to go on.

    The table of identities is published as a pickle, which is never loaded: the error says how to
    turn it into a CSV file.
    """
    from lorasynth.library import Library
    from lorasynth.library.w2w import import_w2w

    report = import_w2w(source, out, gauge=gauge, dtype=dtype, person=person, embeddings=embeddings)
    for skipped, reason in report.skipped.items():
        typer.echo(f"skipped {skipped}: {reason}", err=True)
    if "split" not in Library.open(out).table.column_names:
        typer.echo(
            "no split: neither the table nor --embeddings says which rows show one person", err=True
        )
    typer.echo(f"{out}: {len(report.imported)} adapters imported, {len(report.skipped)} skipped")
