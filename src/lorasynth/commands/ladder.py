"""`lorasynth ladder`: where likeness is lost."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.instruments import Split
from lorasynth.commands.options import Device, Seed


def ladder(
    subjects: Annotated[int, typer.Option(help="Subjects drawn from the split.", min=2)] = 24,
    seed: Seed = 0,
    split: Split = "validation",
    json: Annotated[Path | None, typer.Option(help="Also write the figures here.")] = None,
    image: Annotated[Path | None, typer.Option(help="Also draw them here, as a PNG.")] = None,
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("bundle"),
    cache: Annotated[
        Path, typer.Option(help="Folder for trained adapters and measurements.")
    ] = Path("runs/evaluation"),
    device: Device = "auto",
) -> None:
    """Replace the truth by what the system makes of it, stage by stage, and measure likeness."""
    from rich.console import Console
    from rich.table import Table

    from lorasynth.avatars.bundle import Bundle
    from lorasynth.core.atomic import write_json
    from lorasynth.core.config import from_dict
    from lorasynth.core.device import pick_device
    from lorasynth.evaluation.bootstrap import in_words
    from lorasynth.evaluation.trial import COMPARED, TrialConfig
    from lorasynth.studies.ladder import draw_ladder
    from lorasynth.studies.ladder import ladder as run

    config = from_dict(TrialConfig, {"subjects": subjects, "seed": seed, "split": split})
    report = run(Bundle.open(bundle, pick_device(device)), config, cache)
    table = Table("rung", "likeness", "second encoder", "attributes")
    for rung in report["rungs"]:
        table.add_row(rung["rung"], *(in_words(rung[name]) for name in COMPARED))
    Console().print(table)
    if json is not None:
        write_json(json, report)
    if image is not None:
        draw_ladder(report, image)
