"""`lorasynth library`: look into a library."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.progress import console

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
def info(path: Where) -> None:
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
    for name, value in facts.items():
        typer.echo(f"{name:<12}{value}")
