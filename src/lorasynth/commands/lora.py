"""`lorasynth convert`, `inspect` and `check`: LoRA files of any kind."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorasynth.commands.options import Base
from lorasynth.commands.synth import Format
from lorasynth.core.errors import ConfigError, FileFormatError, escaped

if TYPE_CHECKING:
    from lorasynth.adapter import Adapter
    from lorasynth.adapter.files import LoraFormat
    from lorasynth.adapter.inspection import Inspection

File = Annotated[Path, typer.Argument(help="LoRA file, or folder with one.", show_default=False)]
DTYPES = ("float32", "float16", "bfloat16")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="What to write.")]
Program = Annotated[
    str | None,
    typer.Option(
        "--for", help="Instead: the program that is to read it: comfyui, diffusers, a1111, peft, "
        "ai-toolkit or kohya."
    ),
]  # fmt: skip
FamilyName = Annotated[
    str | None,
    typer.Option("--family", help="sd1, sdxl, flux1, ...: where names and shapes leave several."),
]
Source = Annotated[Path, typer.Argument(metavar="IN", help="LoRA file or folder.")]
Rank = Annotated[int, typer.Option(help="The highest rank of what is no plain LoRA.", min=1)]
DType = Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}; default: as it is.")]


def convert(
    source: Source,
    out: Out,
    file_format: Format = "auto",
    program: Program = None,
    family: FamilyName = None,
    dtype: DType = None,
    rank: Rank = 128,
) -> None:
    """Write a LoRA in another spelling: its update stays as it is, its scale in the numbers.

    LoHa, LoKr, Tucker cores and whole differences become a LoRA, exactly where --rank allows.
    """
    from lorasynth.adapter.families import family_named
    from lorasynth.adapter.files.conversion import read_any

    writer = _chosen(out, file_format, program)
    _check_dtype(dtype)
    made = read_any(source, rank, family_named(family) if family else None)
    path = _written(made.file.adapter, out, writer, program, dtype or _name(made.file.dtype))
    if made.kinds:
        _say_error(f"made of {' and '.join(made.kinds)}", made.rank, made.error, made.worst)
    typer.echo(path)


def _say_error(what: str, rank: int, error: float, worst: float) -> None:
    line = f"{what}: rank {rank}, relative error {error:.2g}, of the worst module {worst:.2g}"
    typer.echo(line, err=True)


def resize(
    source: Source,
    out: Out,
    rank: Rank,
    energy: Annotated[
        float, typer.Option(help="Share of the squared norm that is enough.", min=0, max=1)
    ] = 1.0,
    file_format: Format = "auto",
    dtype: DType = None,
) -> None:
    """Write a LoRA at a lower rank: the nearest update of that rank, module by module."""
    from dataclasses import replace

    from lorasynth.adapter.files import read
    from lorasynth.adapter.lowrank import relative_error, truncated

    writer = _chosen(out, file_format, None)
    _check_dtype(dtype)
    found = read(source)
    parts = {m: truncated(f, rank, energy) for m, f in found.adapter.factors.items()}
    smaller = replace(found.adapter, factors={m: part.factor for m, part in parts.items()})
    path = _written(smaller, out, writer, None, dtype or _name(found.dtype))
    highest = max(part.factor.rank for part in parts.values())
    worst = max(relative_error([part]) for part in parts.values())
    _say_error("resized", highest, relative_error(parts.values()), worst)
    typer.echo(path)


def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE...", help="LoRA files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="What to write.")],
    weight: Annotated[
        list[float] | None, typer.Option(help="Weight of each file; default: 1.")
    ] = None,
    method: Annotated[str, typer.Option(help="sum (exact), ties or dare.")] = "sum",
    density: Annotated[
        float, typer.Option(help="Share of the numbers that ties and dare keep.", min=0, max=1)
    ] = 0.5,
    rank: Rank = 64,
    file_format: Format = "auto",
) -> None:
    """Join LoRAs: `sum` puts them beside each other, so ranks add up; ties and dare prune first."""
    from lorasynth.adapter.files import read
    from lorasynth.adapter.merging import merged

    writer = _chosen(out, file_format, None)
    weights = weight or [1.0] * len(sources)
    if len(weights) != len(sources):
        raise ConfigError(f"--weight is said for each of {len(sources)} files, or for none")
    files = [read(source) for source in sources]
    adapter, error = merged([file.adapter for file in files], weights, method, density, rank)
    path = _written(adapter, out, writer, None, _name(files[0].dtype))
    if method != "sum":
        typer.echo(f"merged by {method}: rank {rank}, relative error {error:.2g}", err=True)
    typer.echo(path)


def extract(
    tuned: Annotated[Path, typer.Argument(help="Fine-tuned checkpoint: folder or file.")],
    original: Annotated[Path, typer.Argument(help="The checkpoint that it was tuned from.")],
    out: Out,
    rank: Rank = 64,
    family: FamilyName = None,
    file_format: Format = "auto",
    dtype: DType = "float16",
) -> None:
    """Make a LoRA of the difference of two checkpoints, read layer by layer."""
    from lorasynth.adapter.families import family_named
    from lorasynth.adapter.files.conversion import extracted

    writer = _chosen(out, file_format, None)
    _check_dtype(dtype)
    made = extracted(tuned, original, rank, family_named(family) if family else None)
    path = _written(made.file.adapter, out, writer, None, dtype or "float16")
    _say_error("extracted", made.rank, made.error, made.worst)
    if made.left_out:
        typer.echo(
            f"{len(made.left_out)} changed tensors are no matrices of layers, such as "
            f"{escaped(made.left_out[0])}, and are left out",
            err=True,
        )
    typer.echo(path)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype must be one of {', '.join(DTYPES)}, but is {dtype!r}")


def _chosen(out: Path, file_format: str, program: str | None) -> "LoraFormat":
    """The format that is asked for; checks the name of what it will write."""
    from lorasynth.adapter.files import PROGRAMS, get_format

    if program is not None and program not in PROGRAMS:
        raise ConfigError(f"--for must be one of {', '.join(PROGRAMS)}, but is {program!r}")
    writer = get_format(file_format)
    if program is None:
        writer.target(out)
    elif file_format != "auto":
        raise ConfigError(f"a file has one format, but got --format {file_format} and --for")
    return writer


def _written(
    adapter: "Adapter", out: Path, writer: "LoraFormat", program: str | None, dtype: str
) -> Path:
    import torch

    from lorasynth.adapter.files import format_for
    from lorasynth.adapter.precision import narrowed

    writer = format_for(program, adapter) if program else writer
    return writer.write(narrowed(adapter, getattr(torch, dtype)), out)


def inspect(
    file: File,
    image: Annotated[
        Path | None, typer.Option(help="PNG to write: the norms of the blocks.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a LoRA file is, and how much of it each program reads.

    The exit status is 1 where an update is broken or no program reads all of it.
    """
    from lorasynth.adapter.inspection import inspect_file

    found = inspect_file(file)
    if as_json:
        typer.echo(json.dumps(_plain(asdict(found)), indent=1))
    else:
        _print(found)
    if image is not None:
        draw_norms(found, image)
        typer.echo(image, err=as_json)
    if not found.sound:
        raise typer.Exit(1)


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _print(found: "Inspection") -> None:
    from rich.console import Console

    console = Console()
    facts = _facts(found)
    width = max(map(len, facts))
    for name, value in facts.items():
        line = f"{escaped(name):<{width}} {escaped(value)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for table in (_program_table(found), _norm_table(found)):
        console.print(table)
    for warning in (*found.faults, *found.warnings):
        line = f"warning: {escaped(warning)}"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _facts(found: "Inspection") -> dict[str, str]:
    def counted(values: dict[int, int] | dict[float, int]) -> str:
        return ", ".join(f"{value:g} ({count} modules)" for value, count in values.items())

    stated = found.metadata
    facts = {
        "file": str(found.file),
        "format": found.format,
        "family": f"{found.family} (by {found.told_by})",
        "base": stated.base_fingerprint or "not stated",
        "rank": counted(found.ranks),
        "alpha": counted(found.alphas),
        "numbers": f"{found.parameters:,} {found.dtype} in {found.modules} modules",
        "canonical": "yes" if found.canonical else "no",
        "trigger": stated.trigger_phrase or "not stated",
        "origin": "synthesised" if stated.synthesised else "not stated to be synthesised",
        "written by": stated.created_by or "not stated",
    }
    # What a header says of itself has names of its own, so that it cannot pass for a fact.
    return facts | {
        f"header {key}": value for key, value in (found.training | stated.extra).items()
    }


def _program_table(found: "Inspection") -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table("program", "reads of its modules", "loses")
    for reading in found.programs:
        lost = Text(escaped(reading.lost))
        table.add_row(reading.program, f"{reading.modules} of {reading.of}", lost)
    return table


def _norm_table(found: "Inspection") -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table("block", "norm of its update", "")
    table.columns[1].justify = "right"
    largest = max((norm for norm in found.norms.values() if math.isfinite(norm)), default=0.0)
    for block, norm in found.norms.items():
        share = norm / largest if math.isfinite(norm) and largest else float(norm > 0)
        table.add_row(Text(escaped(block)), f"{norm:.4g}", "█" * round(24 * share))
    return table


def draw_norms(found: "Inspection", path: Path) -> None:
    """Write a bar for each block's norm as a PNG."""
    from matplotlib.figure import Figure

    from lorasynth.core.atomic import atomic_file

    norms = {escaped(block)[:60]: norm for block, norm in found.norms.items()}
    finite = [norm if math.isfinite(norm) else 0.0 for norm in norms.values()]
    figure = Figure(figsize=(5, 0.6 + 0.22 * min(len(norms), 400)), dpi=120)
    axis = figure.subplots()
    axis.barh(list(norms), finite, color="#3467cf")
    axis.invert_yaxis()
    axis.set_xlabel("Frobenius norm of the update")
    axis.set_title(escaped(found.file.name).replace("$", r"\$"), fontsize=9)
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
        typer.echo(escaped(line))
    if misfits:
        raise FileFormatError(
            f"every module of a LoRA must fit the base model, but of the {len(adapter.factors)} in "
            f"{file} {len(misfits)} do not fit {base}"
        )
    typer.echo(f"{file}: all {len(adapter.factors)} modules fit {base}")
