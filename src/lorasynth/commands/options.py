"""Options that several commands share, and how they are read."""

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lorasynth.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasynth.base import BaseModel
    from lorasynth.engine.recipe import Recipe
    from lorasynth.synthesizer import Synthesizer

ConfigT = TypeVar("ConfigT")

Device = Annotated[str, typer.Option(help="auto, cpu, mps or cuda[:N].")]
Workers = Annotated[int, typer.Option(help="Processes that draw images.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of every random stream.")]
Run = Annotated[Path, typer.Option(help="Folder for checkpoints; the same folder resumes.")]
Base = Annotated[str, typer.Option(help="Base model: a pipeline folder, or hub:owner/name.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override an option; may be repeated."),
]

Preset = Annotated[
    str, typer.Option(help="Recipe: ours, anchored, refine, usual or weights2weights.")
]
Anchor = Annotated[
    str | None,
    typer.Option(
        help="Synthesizer that predicts the adapters to start from; the recipe's weight_decay "
        "pulls toward them."
    ),
]

DType = Annotated[
    str, typer.Option(help="Number format of the base model: float32, bfloat16 or float16.")
]
Size = Annotated[
    int | None, typer.Option(help="Side of the images in pixels; default: the base model's.")
]
Slicing = Annotated[
    bool,
    typer.Option("--attention-slicing", help="Less memory for attention without a fused kernel."),
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing", help="Much less memory for training, for a third more time."
    ),
]

#: What an image shows where nobody says it.
PORTRAIT = "a portrait of sks"

#: What calls a subject where nobody says it.
TRIGGER = "sks"

Caption = Annotated[str, typer.Option(help="Of images that have no caption of their own.")]
Trigger = Annotated[
    str,
    typer.Option(help="What calls the subject in a prompt, such as 'sks person'; told in files."),
]

#: One process per core.
CORES = os.cpu_count() or 1


def preset_of(name: str) -> "Recipe":
    """The recipe of a preset.

    Raises:
        ConfigError: there is no such preset.
    """
    from lorasynth.engine.recipe import PRESETS

    if name not in PRESETS:
        raise ConfigError(f"--preset must be one of {', '.join(PRESETS)}, but is {name!r}")
    return PRESETS[name]


def load_base(
    base: str,
    device: str,
    dtype: str,
    size: int | None,
    *,
    slicing: bool = False,
    checkpointing: bool = False,
) -> "BaseModel":
    """The base model of a command's options; on the device `meta` without its weights.

    Raises:
        ConfigError: there is no such device or number format.
        BaseModelError: the model is not whole, or cannot do what is asked.
    """
    import torch

    from lorasynth.base import BaseModel, Memory
    from lorasynth.core.device import pick_device

    if device == "meta":  # to compare with, where its weights are here; else they are fetched
        sketch = BaseModel.load(base, device, image_size=size)
        if sketch.fingerprint:
            return sketch
        device = "cpu"
    formats = ("float32", "bfloat16", "float16")
    if dtype not in formats:
        raise ConfigError(f"--dtype must be one of {', '.join(formats)}, but is {dtype!r}")
    memory = Memory(gradient_checkpointing=checkpointing, attention_slicing=slicing)
    number: torch.dtype = getattr(torch, dtype)
    return BaseModel.load(base, pick_device(device), number, memory=memory, image_size=size)


def anchor_of(name: str | None, base: "BaseModel") -> "Synthesizer | None":
    """The synthesizer to start from, if one is named.

    Raises:
        BundleError: it is damaged or incomplete.
        BaseModelError: it was made for another base model.
    """
    from lorasynth.base.compatibility import require_made_for
    from lorasynth.synthesizer import Synthesizer

    if name is None:
        return None
    device = "cpu" if base.device.type == "meta" else base.device
    synthesizer = Synthesizer.from_pretrained(name, device=device)
    require_made_for(base, synthesizer.base_fingerprint, f"synthesizer {name}")
    return synthesizer


def override(config: ConfigT, settings: Sequence[str] | None) -> ConfigT:
    """A config with some fields changed.

    Args:
        config: a config dataclass.
        settings: `name=value`, where dots lead into nested configs and values are JSON or text.

    Raises:
        ConfigError: a setting has no value, or names no field, or its value is of another type.
    """
    from lorasynth.core.config import from_dict, to_dict

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


def as_typed(words: Sequence[str], settings: Sequence[str] | None) -> str:
    """A command with its settings, as a shell takes it."""
    return shlex.join([*words, *(word for one in settings or () for word in ("--set", one))])


def memory_of(text: str | None) -> int:
    """Bytes of an amount of memory such as 8GB, 500MB or 7.5GiB; half of the machine's for None.

    Raises:
        ConfigError: it is no amount.
    """
    import psutil

    if text is None:
        return int(psutil.virtual_memory().total) // 2
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(I?)B?", text.strip().upper())
    if match is None:
        raise ConfigError(f"--memory must be a number with its unit, such as 8GB, but is {text!r}")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** (1 + "KMGT".index(unit)))


def _value(text: str) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
