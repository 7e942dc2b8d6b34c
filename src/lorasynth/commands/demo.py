"""`lorasynth demo`: the whole system at once, as one page."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.options import Device, Seed


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo"),
    subjects: Annotated[int, typer.Option(help="Unseen subjects.", min=2)] = 6,
    seed: Seed = 0,
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("bundle"),
    device: Device = "auto",
) -> None:
    """Synthesise, train and compare adapters for subjects never trained on."""
    from lorasynth.avatars.bundle import Bundle
    from lorasynth.avatars.demo import draw_sheet, run_demo, write_page
    from lorasynth.core.config import from_dict
    from lorasynth.core.device import pick_device
    from lorasynth.evaluation.config import BenchmarkConfig

    config = from_dict(BenchmarkConfig, {"subjects": subjects, "seed": seed, "images": 6})
    result = run_demo(Bundle.open(bundle, pick_device(device)), config, out)
    draw_sheet(result, out / "demo.png")
    write_page(result, out / "index.html")
    typer.echo(out / "index.html")
