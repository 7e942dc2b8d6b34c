"""All commands: where each is, and the overview that `lorasynth --help` prints.

Modules of commands import no torch, so that each help is there at once.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from lorasynth.core.command import Command
from lorasynth.core.registry import load_point

#: Each command's class, in the order of the overview.
_OWN: dict[str, str] = {
    "synth": "synth:Synth",
    "images": "images:Images",
    "serve": "serve:Serve",
    "ui": "serve:Ui",
    "edit": "edit:Edit",
    "edit interpolate": "edit:Interpolate",
    "sample": "edit:Sample",
    "refine": "optimise:Refine",
    "optimise blend": "optimise:Blend",
    "optimise invert": "optimise:Invert",
    "inspect": "lora:Inspect",
    "convert": "lora:Convert",
    "resize": "lora:Resize",
    "merge": "lora:Merge",
    "extract": "lora:Extract",
    "recipe domain": "recipe:Domain",
    "plan": "plan:Plan",
    "pretrain": "pretrain:Pretrain",
    "collect": "collect:Collect",
    "fit": "train:Fit",
    "train": "train:Train",
    "import loras": "importing:ImportLoras",
    "import w2w": "importing:ImportW2W",
    "library info": "library:Info",
    "library check": "library:Check",
    "library annotate": "library:Annotate",
    "library embed": "library:Embed",
    "library forget": "library:Forget",
    "library join": "library:Join",
    "encoders list": "encoders:ListEncoders",
    "encoders make": "encoders:MakeEncoder",
    "encoders attributes": "encoders:MakeAttributes",
    "encoders join": "encoders:JoinEncoders",
    "encoders train": "encoders:TrainEncoder",
    "evaluate": "evaluate:Evaluate",
}

_GROUP = "lorasynth.commands"
_PACKAGE = "lorasynth"


def names() -> list[str]:
    """The names of all commands; those of other packages last."""
    return [*_OWN, *_others()]


def load(name: str) -> type[Command]:
    """A command; of another package, whose code runs only now.

    Raises:
        ConfigError: that package cannot be imported.
    """
    if name in _OWN:
        module, _, kind = _OWN[name].partition(":")
        command: type[Command] = getattr(import_module(f"lorasynth.commands.{module}"), kind)
        return command
    loaded: type[Command] = load_point(_others()[name], f"command {name}")
    return loaded


def overview(within: str = "") -> str:
    """What `lorasynth --help` prints; or the help of a group, or of a command's kinds."""
    if within in names():
        rows = {f"{within} {kind}": _summary(c) for kind, c in load(within).kinds().items()}
        return "\n".join([f"usage: lorasynth {within} KIND ...\n", *_table(rows)])
    groups: dict[str, dict[str, str]] = {}
    for name in names():
        if not name.startswith(f"{within} " if within else ""):
            continue
        if (point := _others().get(name)) and _maker(point) != _PACKAGE:
            groups.setdefault("Of other packages", {})[name] = f"({_maker(point)})"
            continue
        command = load(name)
        groups.setdefault(command.group, {})[name] = _summary(command)
    lines = [f"usage: lorasynth {within + ' ' if within else ''}COMMAND ..."]
    if not within:
        lines += ["", "One reference photo in, a LoRA file for a text-to-image model out."]
    for group, rows in groups.items():
        lines += ["", group, *_table(rows)]
    return "\n".join([*lines, "", "lorasynth COMMAND --help tells more of one."])


def _summary(command: type[Command]) -> str:
    return (command.__doc__ or "").strip().splitlines()[0]


def _table(rows: dict[str, str]) -> Sequence[str]:
    width = max(map(len, rows), default=0)
    return [f"  {name:<{width}}  {summary}" for name, summary in rows.items()]


@cache
def _others() -> dict[str, EntryPoint]:
    """Commands by entry point, in alphabetical order: of our own leaves and of other packages."""
    points = sorted(entry_points(group=_GROUP), key=lambda point: point.name)
    return {point.name.replace(".", " "): point for point in points}


def _maker(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "?"
