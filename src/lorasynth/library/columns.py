"""Arrays aligned with the rows of a library, such as embeddings: one self-checking file each.

The header holds the SHA-256 of the numbers and of the ids that they belong to, so that a changed
byte, or a row that was removed, is noticed.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorasynth.core.atomic import atomic_file
from lorasynth.core.errors import LibraryError, reason_of
from lorasynth.core.weights import require_small_header, save_with_header


def write_column(path: Path, values: Tensor, ids: Sequence[str]) -> None:
    """Write an array whose first axis runs over `ids`."""
    values = values.detach().cpu().clone().contiguous()
    header = {"ids": hash_lines(ids), "values": hash_numbers(values)}
    with atomic_file(path) as temporary:
        save_with_header({"values": values}, temporary, header)


def read_column(path: Path, ids: Sequence[str]) -> Tensor:
    """Read an array that belongs to `ids`.

    Raises:
        LibraryError: it does not exist, is damaged, or belongs to other ids.
    """
    advice = "attach it again"
    if not path.is_file():
        raise LibraryError(
            f"a column must be attached before it is read, but {path} is not there (embeddings are "
            "attached by `lorasynth collect --encoder` and `lorasynth library embed`)"
        )
    try:
        require_small_header(path)
        with safe_open(path, framework="pt") as file:
            values: Tensor = file.get_tensor("values")
            header = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        reason = reason_of(error)
        raise LibraryError(f"column {path} cannot be read ({reason}): {advice}") from error
    if len(values) < len(ids):
        raise LibraryError(
            f"a column must cover all {len(ids)} adapters, but {path} covers {len(values)}: "
            f"{advice}"
        )
    if header.get("ids") != hash_lines(ids):
        raise LibraryError(f"column {path} belongs to other adapters: {advice}")
    if header.get("values") != hash_numbers(values):
        raise LibraryError(f"column {path} has changed since it was written: {advice}")
    return values


def hash_lines(lines: Sequence[str]) -> str:
    """SHA-256 of some lines, such as ids."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_numbers(values: Tensor) -> str:
    """SHA-256 of the numbers of a contiguous tensor in the processor's memory."""
    return hashlib.sha256(values.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
