"""`lorasynth convert`, `inspect` and `check`: LoRA files of any kind."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasynth.cli.options import Base
from lorasynth.errors import ConfigError, FileFormatError

if TYPE_CHECKING:
    from lorasynth.adapter.inspection import Inspection

File = Annotated[Path, typer.Argument(help="LoRA file, or folder with one.", show_default=False)]
DTYPES = ("float32", "float16", "bfloat16")


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="LoRA file or folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write.")],
    file_format: Annotated[str, typer.Option("--format", help="diffusers, kohya or peft.")],
    dtype: Annotated[
        str | None, typer.Option(help=f"{', '.join(DTYPES)}; default: as it is.")
    ] = None,
) -> None:
    """Write a LoRA in another format: its update stays as it is, its scale in the numbers.

    kohya is what ComfyUI, A1111 and diffusers read; diffusers what diffusers alone does.
    """
    import torch

    from lorasynth.adapter import Adapter
    from lorasynth.adapter.files import get_format

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype must be one of {', '.join(DTYPES)}, but is {dtype!r}")
    writer = get_format(file_format)
    writer.target(out)
    adapter = Adapter.load(source)
    if dtype is not None:
        adapter = adapter.to(getattr(torch, dtype))
    typer.echo(writer.write(adapter, out))


def inspect(
    file: File,
    picture: Annotated[
        Path | None, typer.Option(help="PNG to write: the norms of the blocks.")
    ] = None,
) -> None:
    """Say what a LoRA file is, and what some loader would lose of it."""
    from rich.console import Console

    from lorasynth.adapter.inspection import inspect_file

    found = inspect_file(file)
    console = Console()
    facts = _facts(found)
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name:<{width}} {value}", markup=False, highlight=False, soft_wrap=True)
    console.print(_norm_table(found))
    for warning in found.warnings:
        line = f"warning: {warning}"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if picture is not None:
        draw_norms(found, picture)
        typer.echo(picture)


def _facts(found: "Inspection") -> dict[str, str]:
    def counted(values: dict[int, int] | dict[float, int]) -> str:
        return ", ".join(f"{value:g} ({count} modules)" for value, count in values.items())

    stated = found.metadata
    return {
        "file": str(found.file),
        "format": found.format,
        "family": found.family,
        "base": stated.base_fingerprint or "not stated",
        "rank": counted(found.ranks),
        "alpha": counted(found.alphas),
        "numbers": f"{found.parameters:,} {found.dtype} in {found.modules} modules",
        "canonical": "yes" if found.canonical else "no",
        "trigger": stated.trigger_phrase or "not stated",
        "origin": "synthesised" if stated.synthesised else "not stated to be synthesised",
        "written by": stated.created_by,
        **stated.extra,
    }


def _norm_table(found: "Inspection") -> object:
    from rich.table import Table

    table = Table("block", "norm of its update", "")
    table.columns[1].justify = "right"
    largest = max(found.norms.values()) or 1.0
    for block, norm in found.norms.items():
        table.add_row(block, f"{norm:.4g}", "█" * round(24 * norm / largest))
    return table


def draw_norms(found: "Inspection", path: Path) -> None:
    """Write a bar for each block's norm as a PNG."""
    from matplotlib.figure import Figure

    from lorasynth.atomic import atomic_file

    figure = Figure(figsize=(5, 0.6 + 0.22 * len(found.norms)), dpi=120)
    axis = figure.subplots()
    axis.barh(list(found.norms), list(found.norms.values()), color="#3467cf")
    axis.invert_yaxis()
    axis.set_xlabel("Frobenius norm of the update")
    axis.set_title(found.file.name, fontsize=9)
    axis.tick_params(labelsize=8)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def check(
    file: File,
    base: Base,
) -> None:
    """Compare every key of a LoRA file with a base model, whose weights are not read."""
    from lorasynth.adapter import Adapter
    from lorasynth.base.outline import outline

    adapter = Adapter.load(file)
    misfits = outline(base).misfits(adapter.layout)
    for line in misfits:
        typer.echo(line)
    if misfits:
        raise FileFormatError(
            f"every module of a LoRA must fit the base model, but of the {len(adapter.factors)} in "
            f"{file} {len(misfits)} do not fit {base}"
        )
    typer.echo(f"{file}: all {len(adapter.factors)} modules fit {base}")
