"""Safetensors in and out: one clear error for damaged files, and our metadata in the header."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorasynth.adapter.adapter import AdapterMetadata
from lorasynth.atomic import atomic_file
from lorasynth.errors import FileFormatError

#: File names that folders of the known formats hold.
WEIGHT_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")

_PREFIX = "lorasynth."
_EXTRA = _PREFIX + "extra."
#: Types that are read and written, in the order that the package gives to tensors in a file.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
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


def read_keys(path: Path) -> list[str]:
    """Tensor names in a safetensors file, which is not read further than its header."""
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def read_tensors(path: Path) -> Content:
    """The whole of a safetensors file.

    Raises:
        FileFormatError: the file is truncated, a pickle, something else, or holds other numbers
            than floating-point ones.
    """
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES and not key.endswith(".alpha"):
            raise FileFormatError(
                f"LoRA weights must be float64, float32, float16 or bfloat16, but {key} in {path} "
                f"is {str(tensor.dtype).removeprefix('torch.')}"
            )
    return Content(path, tensors, header)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file atomically.

    By hand: the package spends 0.1 ms on each of the hundreds of small tensors of an adapter, more
    than on their numbers.  The format is a JSON header with its length in 8 bytes before it, padded
    to a multiple of 8, then all numbers by type and name.
    """
    places = list(_DTYPES)
    order = sorted(tensors, key=lambda key: (places.index(tensors[key].dtype), key))
    entries: dict[str, Any] = {"__metadata__": dict(sorted({"format": "pt", **header}.items()))}
    parts: list[Any] = []
    end = 0
    for key in order:
        tensor = tensors[key].detach().cpu().contiguous()
        start, end = end, end + tensor.nbytes
        entries[key] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        parts.append(tensor.view(-1).view(torch.uint8).numpy())
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))


def to_header(metadata: AdapterMetadata) -> dict[str, str]:
    """Metadata as header entries."""
    return {
        _PREFIX + "created_by": metadata.created_by,
        _PREFIX + "base_fingerprint": metadata.base_fingerprint,
        _PREFIX + "trigger_phrase": metadata.trigger_phrase,
        _PREFIX + "synthesised": str(metadata.synthesised).lower(),
        **{_EXTRA + key: value for key, value in metadata.extra.items()},
    }


def from_header(header: Mapping[str, str]) -> AdapterMetadata:
    """Metadata from header entries; what a foreign file lacks stays empty."""
    return AdapterMetadata(
        base_fingerprint=header.get(_PREFIX + "base_fingerprint", ""),
        trigger_phrase=header.get(_PREFIX + "trigger_phrase", ""),
        synthesised=header.get(_PREFIX + "synthesised", "false") == "true",
        created_by=header.get(_PREFIX + "created_by", ""),
        extra={
            key.removeprefix(_EXTRA): value
            for key, value in header.items()
            if key.startswith(_EXTRA)
        },
    )


def _refuse_pickle(path: Path) -> None:
    try:
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
        f"a LoRA file must be complete safetensors, but {path} is not ({reason}): copy or "
        "download it again"
    )
