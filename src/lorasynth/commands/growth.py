"""`lorasynth growth`: likeness against the size of the library."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.instruments import Encoder, Judge, Second, Split, instruments_of
from lorasynth.commands.options import Anchor, Base, Device, Seed, Settings, anchor_of, override


def growth(
    library: Annotated[Path, typer.Argument(help="Library, embedded.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for reports and image.")],
    size: Annotated[
        list[int] | None,
        typer.Option(
            help="Size to measure; may be repeated. Default: 125 and its doubles, and all.", min=3
        ),
    ] = None,
    subjects: Annotated[int, typer.Option(help="Subjects drawn from the split.", min=2)] = 50,
    seed: Seed = 0,
    split: Split = "validation",
    latents: Annotated[int, typer.Option(help="Principal components.", min=1)] = 128,
    temperature: Annotated[
        float, typer.Option(help="Weight of the hypernetwork's noise.", min=0)
    ] = 0.5,
    settings: Settings = None,
    anchor: Anchor = None,
    base: Base = "bundle/base",
    encoder: Encoder = "bundle/encoders/avatar",
    second: Second = "bundle/encoders/avatar-second",
    condition: Annotated[
        str | None,
        typer.Option(help="Encoder that embedded the library's subjects; default: --encoder."),
    ] = None,
    judge: Judge = Path("bundle/judge"),
    device: Device = "auto",
) -> None:
    """Train on ever larger parts of a library and measure each; run again to resume.

    Example: lorasynth growth library -o runs/growth --size 125 --size 250 --size 500
    """
    from rich.console import Console
    from rich.table import Table

    from lorasynth.core.config import from_dict
    from lorasynth.evaluation.bootstrap import in_words
    from lorasynth.evaluation.trial import TrialConfig
    from lorasynth.hypernet.train import HypernetConfig
    from lorasynth.library import Library
    from lorasynth.studies.growth import GrowthConfig, doubled, draw_growth
    from lorasynth.studies.growth import growth as run

    opened = Library.open(library)
    config = GrowthConfig(
        sizes=tuple(size or doubled(len(opened))),
        latents=latents,
        hypernet=override(HypernetConfig(), settings),
        temperature=temperature,
        trial=from_dict(TrialConfig, {"subjects": subjects, "seed": seed, "split": split}),
    )
    instruments = instruments_of(base, encoder, second, judge, device, condition)
    start = anchor_of(anchor, instruments.base)
    reports = run(instruments, opened, config, out, start)
    draw_growth(reports, out / "growth.png")
    table = Table("adapters", *reports[0]["methods"])
    for report in reports:
        rows = [row["likeness"] for row in report["methods"].values()]
        table.add_row(str(report["size"]), *map(in_words, rows))
    Console().print(table)
