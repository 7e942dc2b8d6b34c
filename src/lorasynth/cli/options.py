"""Options that several commands share, and how they are read."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from lorasynth.errors import ConfigError

ConfigT = TypeVar("ConfigT")

Device = Annotated[str, typer.Option(help="auto, cpu, mps or cuda[:N].")]
Workers = Annotated[int, typer.Option(help="Processes that draw pictures.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of every random stream.")]
Run = Annotated[Path, typer.Option(help="Folder for checkpoints; the same folder resumes.")]
Base = Annotated[Path, typer.Option(help="Base model: a pipeline folder or hub id.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override an option; may be repeated."),
]

#: One process per core.
CORES = os.cpu_count() or 1


def override(config: ConfigT, settings: Sequence[str] | None) -> ConfigT:
    """A config with some fields changed.

    Args:
        config: a config dataclass.
        settings: `name=value`, where dots lead into nested configs and values are JSON or text.

    Raises:
        ConfigError: a setting has no value, or names no field, or its value is of another type.
    """
    from lorasynth.config import from_dict, to_dict

    stated = to_dict(config)
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        *outer, last = name.split(".")
        place: Any = stated
        for part in outer:
            place = place.get(part) if isinstance(place, dict) else None
        if not equals or not isinstance(place, dict):
            raise ConfigError(
                "a setting must be NAME=VALUE with the name of an option, but got "
                f"{setting!r}: use, for example, --set {next(iter(stated))}=..."
            )
        place[last] = _value(text)
    return from_dict(type(config), stated)


def _value(text: str) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
