"""A command is a config with a `run`: the command line, Python and recipes use the same class.

A command of another package joins by entry point; a dot in its name is a space on the command
line::

    [project.entry-points."lorasynth.commands"]
    "pets.collect" = "my_package.commands:CollectPets"
"""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast, get_origin

import tyro
from pydantic import ValidationError
from pydantic.dataclasses import dataclass
from tyro.conf import FlagCreatePairsOff, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from lorasynth.core.errors import ConfigError, quoted

CommandT = TypeVar("CommandT", bound="Command")

#: Nested options without the name of the config that holds them.
Flat = arg(name="")

#: The file or folder to write.
Out = Annotated[Path, arg(aliases=("-o",))]


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A task, whose fields are its options; the first line of its docstring is its summary.

    What is no option stands in class variables: `group`, the heading of the help that lists the
    command, and `shared`, whether the processes of a launcher such as accelerate run it together.
    """

    group: ClassVar[str] = "More"
    shared: ClassVar[bool] = False

    @classmethod
    def kinds(cls) -> "Mapping[str, type[Command]]":
        """What may follow the command's name, such as `pca` after `fit`: the command of each."""
        return {}

    @classmethod
    def chosen_by(cls, words: Sequence[str]) -> "type[Command]":  # noqa: ARG003
        """The command with the defaults that words choose, such as those of a preset."""
        return cls

    @abstractmethod
    def run(self) -> Any:
        """Do it.

        Raises:
            LorasynthError: something that was given cannot be used.
        """


def with_default(
    command: type[CommandT], field_name: str, kind: Any, make: Callable[[], Any]
) -> type[CommandT]:
    """A command with a field of a kind, whose default is made."""
    body = {
        "__annotations__": {field_name: kind},
        "__doc__": command.__doc__,
        "__module__": command.__module__,
        field_name: field(default_factory=make),
    }
    made = type(command.__name__, (command,), body)
    return cast("type[CommandT]", dataclass(frozen=True, kw_only=True)(made))


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """Where to compute.

    Attributes:
        device: auto, cpu, mps or cuda[:N].
    """

    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """Random numbers.

    Attributes:
        seed: Seed of every random stream.
    """

    seed: int = 0


def read_command(kind: type[CommandT], name: str, words: Sequence[str]) -> CommandT:
    """Read a command's options as a shell gives them.

    Args:
        kind: the command.
        name: of the program and the command, for the help.
        words: the options.

    Raises:
        ConfigError: an option is missing, unknown, or has a value that it cannot have.
        SystemExit: the help was asked for, and is printed.
    """
    said = StringIO()
    try:
        wide = _width(None if {"-h", "--help"} & set(words) else 10_000)
        with _CONSTRUCTORS, wide, redirect_stderr(said):
            chosen = cast("type[CommandT]", kind.chosen_by(words))
            return tyro.cli(chosen, prog=name, args=list(words), config=(FlagCreatePairsOff,))
    except SystemExit as ended:
        if not ended.code:
            raise
        raise ConfigError(f"{_refusal(said.getvalue())} (all options: {name} --help)") from ended
    except ValidationError as error:  # of a config within the command
        raise ConfigError(f"{_refused_by(error)} (all options: {name} --help)") from error


def _refused_by(error: ValidationError) -> str:
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return reason
    option = ".".join(map(str, first["loc"])).replace("_", "-")
    return f"--{option}: {reason[:1].lower()}{reason[1:]}, but got {quoted(first['input'])}"


_CONSTRUCTORS = ConstructorRegistry()


@_CONSTRUCTORS.primitive_rule
def _json_options(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Options whose names nobody knows before, such as those of a plug-in, are given as JSON."""
    if get_origin(kind.type) is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: json.loads(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


@contextmanager
def _width(columns: int | None) -> Iterator[None]:
    """Let tyro write boxes of a width, so that no line is broken; None: as wide as the terminal."""
    before = os.environ.get("COLUMNS")
    if columns is not None:
        os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


#: A row of what pydantic says of a field, with the field in the row before.
_REASON = re.compile(r"(?:Value error, )?(.*) \[type=.*, input_value=(.*), input_type=\w+\]$")


def _refusal(text: str) -> str:
    """Why tyro, or pydantic within it, refuses options: one line of the box that it prints."""
    rows = [row.strip("│╭╰╮╯─ ") for row in text.partition("For full helptext")[0].splitlines()]
    rows = [row.strip("-") if not row.strip("- ") else row for row in rows]
    rows = [row for row in rows if row]
    for before, row in pairwise(rows):
        if found := _REASON.match(row):
            reason, value = found.groups()
            if "validation error" in before:  # of several options together
                return reason
            option = before.replace("_", "-")
            return f"--{option}: {reason[:1].lower()}{reason[1:]}, but got {value}"
    return " ".join(rows[1:] or rows)
