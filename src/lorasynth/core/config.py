"""Configs: keyword-only dataclasses that live beside the class they build, saved with each output.

`to_dict` and `from_dict` are the only way in and out of JSON; pydantic checks every field, so a
config edited by hand fails with one clear line.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from lorasynth.core.errors import ConfigError, quoted

ConfigT = TypeVar("ConfigT")

#: Larger JSON files are refused unread.
MAX_BYTES = 32 << 20
#: More values are refused unparsed: each takes some hundred bytes of memory.
MAX_VALUES = 500_000


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config dataclass into plain JSON values."""
    value = TypeAdapter(type(config)).dump_python(config, mode="json")
    assert isinstance(value, dict)
    return value


def from_dict(kind: type[ConfigT], value: Mapping[str, Any]) -> ConfigT:
    """Build a config of class `kind` from JSON values.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{kind.__qualname__} must be options by their names, but is {quoted(value)}"
        )
    known = _known(kind, value)
    try:
        return TypeAdapter(kind).validate_python(known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{kind.__qualname__}.{where}: {first['msg']}, but got {quoted(first['input'])}"
        ) from error


def _known(kind: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """The options by their names of today: until 0.1 images were called pictures.

    Raises:
        ConfigError: there is no such option.
    """
    fields: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(kind)}
    known = {}
    for name, part in value.items():
        now = name if name in fields else name.replace("picture", "image")
        if now not in fields:
            raise ConfigError(
                f"{kind.__qualname__} has no option {name!r}: its options are {', '.join(fields)}"
            )
        for inner in (fields[now], *get_args(fields[now])):  # a config, or a config or None
            is_config = isinstance(inner, type) and dataclasses.is_dataclass(inner)
            if is_config and isinstance(part, Mapping):
                part = _known(inner, part)
        known[now] = part
    return known


def changes(kept: Any, mine: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, in words: `model.width was 64 and is now 128`."""
    if isinstance(kept, Mapping) and isinstance(mine, Mapping):
        return [
            change
            for key in sorted({*kept, *mine})
            for change in changes(kept.get(key), mine.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if kept == mine else [f"{name} was {kept} and is now {mine}"]


def read_json(path: Path | str, values: int = MAX_VALUES) -> dict[str, Any]:
    """Read a JSON object, of a size that is known before it is parsed.

    Args:
        path: the file.
        values: numbers, texts, lists and objects that it may hold.

    Raises:
        ConfigError: the file is missing, is not JSON, is too large, or holds something else than an
            object.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path} does not exist: check the path")
    try:
        text = _bounded(path, values)
        value = json.loads(text, parse_int=_integer)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} must be readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def _bounded(path: Path, values: int) -> str:
    if not path.is_file():
        raise OSError("it is no file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"it has {path.stat().st_size >> 20} MB, and {MAX_BYTES >> 20} are allowed"
        )
    data = path.read_bytes()
    if sum(map(data.count, (b",", b"[", b"{"))) > values:
        raise ValueError(f"it has more than {values} values")
    return data.decode()


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)
