"""Safetensors in and out: one clear error for damaged files, and repeatable bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, TensorSpec, safe_open, serialize
from torch import Tensor

from lorasynth.core.errors import FileFormatError

#: What PEFT writes into a folder.
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
#: File names that folders of the known formats hold: PEFT's and diffusers'.
WEIGHT_NAMES = (PEFT_WEIGHTS, "pytorch_lora_weights.safetensors")

#: Entries with hashes of the numbers.
HASHES = ("modelspec.hash_sha256", "sshs_legacy_hash", "sshs_model_hash")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Content:
    """A safetensors file in memory, and where it came from."""

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, str]


def weights_file(path: Path) -> Path:
    """The safetensors file at `path`, or of a known name in the folder `path`.

    Raises:
        FileFormatError: there is none.
    """
    if not path.exists():
        raise FileFormatError(f"{path} does not exist: check the path")
    if not path.is_dir():
        return path
    if (found := _weights_in(path)) is not None:
        return found
    raise FileFormatError(
        f"a folder with a LoRA must hold {' or '.join(WEIGHT_NAMES)}, but {path} does not"
    )


def is_lora(path: Path) -> bool:
    """Whether there is a file, or a folder that holds a LoRA under a known name."""
    return path.is_file() or _weights_in(path) is not None


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)


def read_tensors(path: Path) -> Content:
    """The whole of a safetensors file.

    Raises:
        FileFormatError: the file is truncated, a pickle or something else.
    """
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = dict(file.metadata() or {})
    except (SafetensorError, OSError, AttributeError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    return Content(path, tensors, header)


def to_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """A safetensors file with hashes of its numbers: equal input gives equal bytes."""
    text, numbers = serialized(tensors)
    return whole_file(text, numbers, header)


def serialized(tensors: Mapping[str, Tensor]) -> tuple[bytes, memoryview]:
    """What describes tensors in a safetensors file, and their numbers."""
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    # as safetensors.torch.save does, which looks for shared memory first, for longer than it writes
    data = memoryview(serialize({key: _spec(tensor) for key, tensor in plain.items()}))
    end = 8 + int.from_bytes(data[:8], "little")
    return bytes(data[8:end]), data[end:]


def whole_file(text: bytes, numbers: memoryview, header: Mapping[str, str]) -> bytes:
    """A file of what `serialized` gives, with hashes of its numbers.

    The hashes are those that kohya's scripts and the modelspec define: kohya's old one is of the
    place where numbers would be if the header had kohya's entries (`ss_...`) only.
    """
    kohyas = {key: value for key, value in header.items() if key.startswith("ss_")}
    place = max(0, 0x100000 - len(_beginning(text, kohyas)))
    whole = hashlib.sha256(numbers).hexdigest()
    legacy = hashlib.sha256(numbers[place : place + 0x10000]).hexdigest()[:8]
    hashes = dict(zip(HASHES, (f"0x{whole}", legacy, whole), strict=True))
    return b"".join([_beginning(text, {**header, **hashes}), numbers])


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tensor.shape,
        data_ptr=tensor.data_ptr(),
        data_len=tensor.nbytes,
    )


def _beginning(text: bytes, header: Mapping[str, str]) -> bytes:
    """All of a file before its numbers; `text` describes the tensors.

    The package orders the entries of the header at random, so they are put in here.
    """
    entries = json.dumps(dict(sorted(header.items())), ensure_ascii=False, separators=(",", ":"))
    text = b'{"__metadata__":' + entries.encode() + b"," + text[1:].rstrip()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def refuse_pickle(path: Path) -> None:
    """Say in one line that a file is a pickle.

    Raises:
        FileFormatError: it is one, or cannot be read.
    """
    try:
        if not path.is_file():  # to read from a pipe would wait for ever
            raise OSError("it is no file")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise _damaged(path, error) from error
    # A safetensors file begins with the length of its header in 8 bytes, which may be those of a
    # pickle, and then the header.
    if start.startswith(_PICKLE_STARTS) and not start.endswith(b"{"):
        raise FileFormatError(
            f"a LoRA file must be safetensors, but {path} is a pickle or zip archive, which can "
            "run code when it is loaded: convert it where you trust it"
        )


def _damaged(path: Path, error: Exception) -> FileFormatError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return FileFormatError(
        f"a LoRA file must be complete safetensors, but {path} is not ({reason[:300]}): copy or "
        "download it again"
    )
