"""`lorasynth evaluate`: every method on subjects never trained on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorasynth.commands.options import Device, Seed

_COLUMNS = (
    "likeness",
    "likeness_second",
    "attribute_accuracy",
    "prompt_following",
    "diversity",
)


def evaluate(
    subjects: Annotated[int, typer.Option(help="Subjects drawn from the split.", min=2)] = 100,
    seed: Seed = 0,
    json: Annotated[Path | None, typer.Option(help="Also write the figures here.")] = None,
    split: Annotated[str, typer.Option(help="test, or validation for choices.")] = "test",
    tune: Annotated[
        int,
        typer.Option(
            help="Validation subjects on whom every method's strength is chosen first; 0: as "
            "shipped.",
            min=0,
        ),
    ] = 0,
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("bundle"),
    cache: Annotated[
        Path, typer.Option(help="Folder for trained adapters and measurements.")
    ] = Path("runs/evaluation"),
    device: Device = "auto",
) -> None:
    """Measure likeness, attributes, prompt following and diversity of every method."""
    from rich.console import Console

    from lorasynth.avatars.bundle import Bundle
    from lorasynth.core.atomic import write_json
    from lorasynth.core.config import from_dict
    from lorasynth.core.device import pick_device
    from lorasynth.evaluation.evaluate import EvaluationConfig
    from lorasynth.evaluation.evaluate import evaluate as run

    trial = {"subjects": subjects, "seed": seed, "split": split}
    config = from_dict(EvaluationConfig, {"trial": trial, "tuning": tune})
    result = run(Bundle.open(bundle, pick_device(device)), config, cache)
    Console().print(_table(result))
    if json is not None:
        write_json(json, result)


def _table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    from lorasynth.evaluation.bootstrap import in_words

    table = Table(title=f"{result['rows'][0]['n']} subjects; likeness with its 95 % interval")
    table.add_column("method")
    for column in _COLUMNS:
        table.add_column(column.replace("_", " "), justify="right")
    for row in result["rows"]:
        rest = (f"{row[name]['mean']:.3f}" for name in _COLUMNS[1:])
        table.add_row(row["method"], in_words(row["likeness"]), *rest)
    return table
