"""Which format a file is in."""

from pathlib import Path

from lorasynth.adapter.files import diffusers, kohya, peft  # noqa: F401  (they register themselves)
from lorasynth.adapter.files._pairs import refuse_other_kinds
from lorasynth.adapter.files._safetensors import read_keys, weights_file
from lorasynth.adapter.files.contract import FORMATS, LoraFormat
from lorasynth.errors import FileFormatError


def get_format(name: str) -> LoraFormat:
    """The format of that name.

    Raises:
        ConfigError: there is none.
    """
    return FORMATS.get(name)()


def detect(path: Path | str) -> LoraFormat:
    """The format that a file or folder is in, told by its keys.

    Raises:
        FileFormatError: the file is damaged, of another kind of adapter, no adapter, or mixed.
    """
    file = weights_file(Path(path))
    keys = read_keys(file)
    refuse_other_kinds(file, keys)
    others = (name for name in FORMATS.names() if name not in FORMATS.own)
    matching = [name for name in FORMATS.own if get_format(name).recognises(keys)]
    matching = matching or [name for name in others if get_format(name).recognises(keys)]
    if not matching:
        first = f"its first key is {min(keys)}" if keys else "it has no keys at all"
        raise FileFormatError(
            f"a LoRA file must have keys for U-Net modules as {', '.join(FORMATS.names())} name "
            f"them, but {path} has none ({first})"
        )
    if len(matching) > 1:
        raise FileFormatError(
            f"a LoRA file must be in one format, but {path} mixes {' and '.join(matching)}"
        )
    return get_format(matching[0])
