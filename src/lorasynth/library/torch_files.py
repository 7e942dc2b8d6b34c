"""What `torch.save` wrote, read without running anything in it, and large matrices by their rows.

`torch.load(mmap=True)` maps pages that may be written to, for which Linux wants as much memory as
the file has, and refuses if the machine has less.  So a large matrix is not loaded: torch says
where it is within the file, and its rows are mapped for reading alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lorasynth.errors import FileFormatError


def load_tensors(path: Path) -> Any:
    """What torch saved, and only if it is tensors and plain values.

    Raises:
        FileFormatError: it is anything else; nothing in it was run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises depends on where it stops reading
        raise FileFormatError(
            f"{path} must be a file of torch.save with tensors alone, but is not (nothing in it "
            "was run): download it again, and do not load it by other means"
        ) from error


def _is_matrix(found: Any) -> TypeGuard[Tensor]:
    dense = isinstance(found, Tensor) and found.layout == torch.strided
    return dense and found.dim() == 2 and found.is_floating_point()


@dataclass(frozen=True)
class SavedMatrix:
    """A matrix that `torch.save` wrote: where its numbers are within the file.

    Attributes:
        path: the file.
        dtype: of the numbers.
        shape: N and D.
        strides: numbers from a row to the next, and from a column to the next.
        start: bytes before the first number.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, int]
    strides: tuple[int, int]
    start: int

    @classmethod
    def find(cls, path: Path) -> "SavedMatrix":
        """Look into a file, without its numbers.

        Raises:
            FileFormatError: it holds anything but one matrix, or less than that.
        """
        with FakeTensorMode():
            found = load_tensors(path)
        if not _is_matrix(found):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise FileFormatError(
                f"{path} must hold one dense matrix of floating-point numbers, but holds {what}: "
                "download it again"
            )
        (count, width), (down, right) = found.shape, found.stride()
        place, size = found.untyped_storage()._checkpoint_offset, found.dtype.itemsize
        if place is None:
            raise FileFormatError(
                f"{path} must be a zip file, as torch.save writes since version 1.6, but is an "
                "older one: load it and save it again"
            )
        start = place + size * int(found.storage_offset())
        matrix = cls(path, found.dtype, (count, width), (down, right), start)
        end = start + size * matrix._span(count)
        if end > path.stat().st_size:
            raise FileFormatError(
                f"{path} must hold {count} x {width} numbers up to byte {end}, but has "
                f"{path.stat().st_size} bytes: download it again"
            )
        return matrix

    @classmethod
    def reserve(cls, path: Path, count: int, width: int) -> "SavedMatrix":
        """Write a file for a matrix of float32, with a hole for its numbers.

        Raises:
            RuntimeError: the file cannot be written.
        """
        with FakeTensorMode():
            matrix = torch.empty(count, width)
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(matrix, path)
        return cls.find(path)

    def rows(self, start: int, stop: int) -> Float32[Tensor, "n D"]:
        """Some rows; they are mapped anew each time, so pages before do not stay in memory."""
        size, shape = self.dtype.itemsize, (stop - start, self.shape[1])
        mapped = np.memmap(
            self.path,
            f"i{size}",  # there is no bfloat16 in NumPy
            mode="r",
            offset=self.start + size * start * self.strides[0],
            shape=(self._span(stop - start),),
        )
        strides = [size * stride for stride in self.strides]
        rows = np.lib.stride_tricks.as_strided(mapped, shape, strides, writeable=False)
        return torch.from_numpy(np.array(rows, order="C")).view(self.dtype).float()

    def _span(self, count: int) -> int:
        """Numbers from the first to the last of some rows."""
        lasts = (count - 1, self.shape[1] - 1)
        return 1 + sum(last * stride for last, stride in zip(lasts, self.strides, strict=True))
