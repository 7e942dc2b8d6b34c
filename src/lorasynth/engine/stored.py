"""Rows of tensors that stay in files, so that memory does not grow with their number."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from safetensors import safe_open
from torch import Tensor

#: Files that are open at once.
_OPEN = 128


class StoredRows:
    """One tensor whose rows lie in several safetensors files, read when they are asked for.

    Args:
        paths: of the files, at least one.
        name: of the tensor in each; all have one shape but for the number of rows.
        dtype: of what is read; None: that of the files.
        device: of what is read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.paths, self.name, self.dtype, self.device = list(paths), name, dtype, device
        shapes = [_slice(path, name).get_shape() for path in self.paths]
        self.ends = torch.tensor([shape[0] for shape in shapes]).cumsum(0)
        self.shape = torch.Size([int(self.ends[-1]), *shapes[0][1:]])

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: Int64[Tensor, " n"]) -> Tensor:
        """Some of the rows, on the device."""
        index = rows.cpu().contiguous()
        homes = torch.searchsorted(self.ends, index, right=True)
        found = torch.empty(len(index), *self.shape[1:], dtype=self.dtype)
        for place, (row, home) in enumerate(zip(index.tolist(), homes.tolist(), strict=True)):
            start = int(self.ends[home - 1]) if home else 0
            found[place] = _slice(self.paths[home], self.name)[row - start : row - start + 1][0]
        return found.to(self.device)


@lru_cache(maxsize=_OPEN)
def _opened(path: Path) -> Any:
    return safe_open(str(path), framework="pt")


def _slice(path: Path, name: str) -> Any:
    return _opened(path).get_slice(name)


class Ragged(NamedTuple):
    """Rows of n subjects, one subject after the other.

    Attributes:
        rows: of all.
        first: where each subject's rows begin.
        counts: rows of each subject, one or more.
    """

    rows: StoredRows
    first: Int64[Tensor, " n"]
    counts: Int64[Tensor, " n"]

    @classmethod
    def of(cls, rows: StoredRows, counts: Sequence[int]) -> "Ragged":
        """Subjects whose rows follow one another, `counts` of each."""
        numbers = torch.tensor(counts)
        return cls(rows, numbers.cumsum(0) - numbers, numbers)

    def select(self, subjects: Int64[Tensor, " b"]) -> "Ragged":
        """Some of the subjects."""
        return Ragged(self.rows, self.first[subjects], self.counts[subjects])

    def some(self, most: int) -> Tensor:
        """At most so many rows of the subjects, evenly spread."""
        spans = zip(self.first.tolist(), self.counts.tolist(), strict=True)
        index = torch.cat([torch.arange(first, first + count) for first, count in spans])
        step = -(-len(index) // most)
        return self.rows[index[::step]]
