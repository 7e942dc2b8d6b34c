"""`lorasynth repeatability`, `lorasynth recipes`: what recipes' adapters are worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorasynth.commands.instruments import Encoder, Judge, Second, Split, instruments_of
from lorasynth.commands.options import (
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
from lorasynth.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasynth.evaluation.trial import TrialConfig

Subjects = Annotated[int, typer.Option(help="Subjects trained twice.", min=2)]
Images = Annotated[
    int, typer.Option(help="Images that each training, and the anchor, sees.", min=1)
]
Table = Annotated[
    Path,
    typer.Argument(
        help="JSON: name -> options of a recipe; beside them `preset`, and `anchored` (true to "
        "start from the anchor).",
        show_default=False,
    ),
]

_SHOWN = (
    *("same", "different", "likeness", "likeness_second", "real", "real_second"),
    *("attribute_accuracy", "prompt_following", "seconds"),
)
#: Of a table, short enough for a screen -> figure of a report.
_COLUMNS = {
    "same": "same",
    "other": "different",
    "likeness": "likeness",
    "second": "likeness_second",
    "attr.": "attribute_accuracy",
    "prompts": "prompt_following",
    "s": "seconds",
}


def repeatability(
    subjects: Subjects = 8,
    images: Images = 10,
    seed: Seed = 0,
    split: Split = "validation",
    preset: Preset = "ours",
    settings: Settings = None,
    anchor: Anchor = None,
    base: Base = "bundle/base",
    encoder: Encoder = "bundle/encoders/avatar",
    second: Second = "bundle/encoders/avatar-second",
    judge: Judge = Path("bundle/judge"),
    json: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    device: Device = "auto",
) -> None:
    """Train subjects twice, on images apart: cosine of the updates, and likeness.

    Example: lorasynth repeatability --subjects 8 --set steps=300 --set rank=1
    """
    from lorasynth.core.atomic import write_json
    from lorasynth.studies.repeatability import repeatability_report

    recipe = override(preset_of(preset), settings)
    instruments = instruments_of(base, encoder, second, judge, device)
    config = _trial(subjects, images, seed, split)
    start = anchor_of(anchor, instruments.base)
    report: dict[str, Any] = repeatability_report(instruments, recipe, config, start)
    for name in _SHOWN:
        typer.echo(f"{name:<20}{report[name]:.3f}")
    if json is not None:
        write_json(json, report)


def recipes(
    table: Table,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for reports and image.")],
    subjects: Subjects = 12,
    images: Images = 10,
    seed: Seed = 0,
    split: Split = "validation",
    anchor: Anchor = None,
    base: Base = "bundle/base",
    encoder: Encoder = "bundle/encoders/avatar",
    second: Second = "bundle/encoders/avatar-second",
    judge: Judge = Path("bundle/judge"),
    device: Device = "auto",
) -> None:
    """Measure every recipe of a table on the same subjects; run again to resume.

    Example: lorasynth recipes bench/recipes.json -o runs/recipes --anchor bundle/pretrained
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table as Rows

    from lorasynth.core.config import from_dict, read_json, to_dict
    from lorasynth.engine.recipe import Recipe
    from lorasynth.studies.recipes import Candidate, compare_recipes, draw_recipes

    def candidate(name: str, options: dict[str, Any]) -> Candidate:
        anchored = options.pop("anchored", False)
        if anchored and start is None:
            raise ConfigError(
                f"--anchor must name a synthesizer, since recipe {name!r} of {table} is anchored"
            )
        preset = to_dict(preset_of(options.pop("preset", "ours")))
        recipe = from_dict(Recipe, preset | options)
        return Candidate(recipe=recipe, anchor=start if anchored else None)

    asked = read_json(table)
    instruments = instruments_of(base, encoder, second, judge, device)
    start = anchor_of(anchor, instruments.base)
    candidates = {name: candidate(name, dict(options)) for name, options in asked.items()}
    config = _trial(subjects, images, seed, split)
    reports = compare_recipes(instruments, candidates, config, out)
    draw_recipes(reports, out / "recipes.png")
    rows = Rows("recipe", *_COLUMNS, box=SIMPLE)
    for name, report in reports.items():
        rows.add_row(name, *(f"{report[figure]:.3f}" for figure in _COLUMNS.values()))
    Console().print(rows)


def _trial(subjects: int, images: int, seed: int, split: str) -> "TrialConfig":
    from lorasynth.core.config import from_dict
    from lorasynth.evaluation.trial import TrialConfig

    stated = {"subjects": subjects, "training_images": images, "seed": seed, "split": split}
    return from_dict(TrialConfig, stated)
