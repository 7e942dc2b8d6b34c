"""All known formats, and which of them a file is in."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from lorasynth.adapter.files._pairs import refuse_other_kinds
from lorasynth.adapter.files._safetensors import read_keys, weights_file
from lorasynth.adapter.files.contract import LoraFormat
from lorasynth.adapter.files.diffusers import DiffusersFormat
from lorasynth.adapter.files.kohya import KohyaFormat
from lorasynth.adapter.files.peft import PeftFormat
from lorasynth.errors import FileFormatError

#: Entry-point group; each entry names a subclass of `LoraFormat`.
ENTRY_POINT_GROUP = "lorasynth.formats"


@cache
def formats() -> Mapping[str, LoraFormat]:
    """Formats by name: ours, then those of installed packages."""
    found: list[LoraFormat] = [DiffusersFormat(), KohyaFormat(), PeftFormat()]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        kind = entry.load()
        if not (isinstance(kind, type) and issubclass(kind, LoraFormat)):
            raise FileFormatError(
                f"an entry of {ENTRY_POINT_GROUP} must name a subclass of LoraFormat, but "
                f"{entry.name} names {kind!r}"
            )
        found.append(kind())
    return {lora_format.name: lora_format for lora_format in found}


def get_format(name: str) -> LoraFormat:
    """The format of that name.

    Raises:
        FileFormatError: there is none.
    """
    try:
        return formats()[name]
    except KeyError:
        raise FileFormatError(
            f"a format must be one of {', '.join(formats())}, but got {name!r}"
        ) from None


def detect(path: Path | str) -> LoraFormat:
    """The format that a file or folder is in, told by its keys.

    Raises:
        FileFormatError: the file is damaged, of another kind of adapter, no adapter, or mixed.
    """
    file = weights_file(Path(path))
    keys = read_keys(file)
    refuse_other_kinds(file, keys)
    matching = [known for known in formats().values() if known.recognises(keys)]
    if not matching:
        first = f"its first key is {min(keys)}" if keys else "it has no keys at all"
        raise FileFormatError(
            f"a LoRA file must have keys for U-Net modules as {', '.join(formats())} name them, "
            f"but {path} has none ({first})"
        )
    if len(matching) > 1:
        names = " and ".join(known.name for known in matching)
        raise FileFormatError(f"a LoRA file must be in one format, but {path} mixes {names}")
    return matching[0]
