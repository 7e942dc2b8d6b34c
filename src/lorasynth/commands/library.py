"""`lorasynth library`: look into a library."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasynth.commands.options import (
    Base,
    Device,
    DType,
    Settings,
    Size,
    load_base,
    override,
)
from lorasynth.core.progress import console

if TYPE_CHECKING:
    from lorasynth.library import Library

app = typer.Typer(help="Libraries of adapters.", no_args_is_help=True)

Where = Annotated[Path, typer.Argument(help="Folder of the library.", show_default=False)]


@app.command()
def check(path: Where) -> None:
    """Verify every number against its checksum: a line for each damage, and status 2 if any."""
    from lorasynth.library import Library

    report = Library.open(path).check()
    for damage in report.damages:
        line = f"damaged: {damage}"
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if report.damages:
        raise typer.Exit(2)
    typer.echo(f"{path}: {report.adapters} adapters in {report.shards} shards, all intact")


@app.command()
def annotate(
    path: Where,
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet file with a column id and one for each fact.", show_default=False
        ),
    ],
) -> None:
    """Add facts about subjects, such as attributes to edit by, or a column split.

    A text has an attribute for each of its values, a number is one; `none` says that a subject has
    nothing of the kind. Values that are missing are allowed, but such a column is no attribute.

    Example: lorasynth library annotate library people.csv
    """
    from lorasynth.library import Library
    from lorasynth.library.annotations import read_facts

    names = Library.open(path).annotate(read_facts(table))
    typer.echo(f"{path}: annotated with {', '.join(names)}")


@app.command()
def embed(
    path: Where,
    encoder: Annotated[str, typer.Option(help="Condition encoder: a folder or a name.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="The subjects' images, as `collect --folder` takes them; without it, they are "
            "made with the adapters."
        ),
    ] = None,
    base: Base = "bundle/base",
    settings: Settings = None,
    dtype: DType = "float32",
    size: Size = None,
    device: Device = "auto",
) -> None:
    """Embed the subjects of a library that was imported; run again to go on.

    Where the images that adapters were trained on are not at hand, each adapter shows its
    subject; --set names options of that. An encoder of attributes alone needs no images.

    Example: lorasynth library embed library --encoder dlib --base path/to/stable-diffusion-v1-5
    --set prompt="a photo of sks person" --set images=4
    """
    from lorasynth.collect.embedding import column_of
    from lorasynth.collect.generated import GeneratedConfig, embed_imported
    from lorasynth.condition import load_encoder
    from lorasynth.core.device import pick_device
    from lorasynth.library import Library

    config = override(GeneratedConfig(), settings)
    library, embedder = Library.open(path), load_encoder(encoder, pick_device(device))
    model = partial(load_base, base, device, dtype, size)
    embed_imported(library, embedder, images, model, config)
    typer.echo(f"{path}: {len(library)} subjects embedded as {column_of(embedder)}")


@app.command()
def forget(
    path: Where,
    subjects: Annotated[list[str], typer.Argument(help="Ids of subjects.", show_default=False)],
) -> None:
    """Remove subjects, with all in the library that was derived from them.

    What was fitted to the library before still holds what it learned from them.
    """
    from lorasynth.collect.failures import Failures
    from lorasynth.core.errors import LibraryError
    from lorasynth.library.forgetting import forget as take_out

    failures = Failures(path)
    failed = [name for name in subjects if name in failures.ids]
    known = {*take_out(path, subjects), *failed}
    failures.update({}, failed)
    if unknown := [name for name in subjects if name not in known]:
        raise LibraryError(
            f"a subject must be in the library, but {unknown[0]!r} is not; "
            f"{len(known)} of {len(subjects)} were removed: check the name"
        )
    typer.echo(
        f"{path}: {len(known)} subjects removed, with their factors, vectors, embeddings and "
        "latents. A codec and a hypernetwork that learned from them, and LoRA files of them, are "
        "elsewhere: fit and train again, and delete those files"
    )


@app.command()
def join(
    out: Annotated[Path, typer.Argument(help="Library to make.", show_default=False)],
    parts: Annotated[
        list[Path] | None,
        typer.Argument(help="The parts' libraries; by default OUT/parts/*.", show_default=False),
    ] = None,
) -> None:
    """Join the parts that `lorasynth collect --shard` made: each adapter once, in one order.

    Example: lorasynth library join library
    """
    from lorasynth.collect.join import join as join_parts

    report = join_parts(out, parts or ())
    with_columns = f", with {', '.join(report.columns)}" if report.columns else ""
    typer.echo(
        f"{out}: {report.adapters} adapters, {report.joined} of them new, {report.failed} failed"
        f"{with_columns}"
    )


@app.command()
def info(
    path: Where,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Read all vectors for their norms and spread.")
    ] = False,
) -> None:
    """Say what a library holds."""
    from lorasynth.library import Library

    library = Library.open(path)
    ranks = sorted({slot.rank for slot in library.layout.slots})
    facts = {
        "adapters": len(library),
        "vector": f"{library.width} numbers ({library.info.dtype})",
        "modules": len(library.layout.modules),
        "rank": ", ".join(map(str, ranks)),
        "gauge": library.info.gauge,
        "base model": library.info.base_fingerprint,
        "columns": ", ".join(library.columns) or "none",
        "table": ", ".join(library.table.column_names),
        "recipe": ", ".join(f"{name}={value}" for name, value in library.info.recipe.items()),
    }
    if statistics:
        facts |= _statistics(library)
    for name, value in facts.items():
        typer.echo(f"{name:<12}{value}")


def _statistics(library: "Library") -> dict[str, str]:
    """The vectors in figures, from one pass."""
    from lorasynth.library import streaming_statistics

    found = streaming_statistics(library)
    mean, variance = found.moments.mean, found.moments.variance
    least, middle, most = (float(found.norms.quantile(share)) for share in (0.0, 0.5, 1.0))
    return {
        "norms": f"{middle:.4g} in the median, {least:.4g} to {most:.4g}",
        "mean": f"norm {float(mean.norm()):.4g}",
        "spread": f"{float(variance.mean().sqrt()):.4g} of a number, "
        f"{float(variance.min().sqrt()):.4g} to {float(variance.max().sqrt()):.4g}",
    }
