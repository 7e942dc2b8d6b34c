"""`lorasynth repeatability`: how much of a recipe's adapters is about their subjects."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorasynth.cli.options import (
    Anchor,
    Base,
    Device,
    Preset,
    Seed,
    Settings,
    anchor_of,
    override,
    preset_of,
)

Part = Annotated[Path, typer.Option(show_default=True)]

_SHOWN = (
    *("same", "different", "likeness", "likeness_second", "real", "real_second"),
    *("attribute_accuracy", "prompt_following", "seconds"),
)


def repeatability(
    subjects: Annotated[int, typer.Option(help="Subjects trained twice.", min=2)] = 8,
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="validation, or test.")] = "validation",
    preset: Preset = "ours",
    settings: Settings = None,
    anchor: Anchor = None,
    base: Base = Path("bundle/base"),
    encoder: Part = Path("bundle/encoders/avatar"),
    second: Part = Path("bundle/encoders/avatar-second"),
    judge: Part = Path("bundle/judge"),
    json: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    device: Device = "auto",
) -> None:
    """Train subjects twice, on pictures apart: cosine of the updates, and likeness.

    Example: lorasynth repeatability --subjects 8 --set steps=300 --set rank=1
    """
    from lorasynth.atomic import write_json
    from lorasynth.base import BaseModel
    from lorasynth.condition import load_encoder
    from lorasynth.config import from_dict
    from lorasynth.device import pick_device
    from lorasynth.experiments.repeatability import repeatability_report
    from lorasynth.experiments.trial import Instruments, TrialConfig
    from lorasynth.measure import AttributeJudge

    recipe = override(preset_of(preset), settings)
    instruments = Instruments(
        base=BaseModel.load(base, pick_device(device)),
        encoder=load_encoder(encoder),
        second=load_encoder(second),
        judge=AttributeJudge.load(judge),
    )
    config = from_dict(TrialConfig, {"subjects": subjects, "seed": seed, "split": split})
    foretells = anchor_of(anchor, instruments.base)
    report: dict[str, Any] = repeatability_report(instruments, recipe, config, foretells)
    for name in _SHOWN:
        typer.echo(f"{name:<20}{report[name]:.3f}")
    if json is not None:
        write_json(json, report)
