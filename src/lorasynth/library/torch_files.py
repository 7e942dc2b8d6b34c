"""What `torch.save` wrote, read without running anything in it, and large matrices by their rows.

`torch.load(mmap=True)` maps pages that may be written to, for which Linux wants as much memory as
the file has, and refuses if the machine has less.  So a large matrix is not loaded: torch says
where it is within the file, and its rows are mapped for reading alone.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lorasynth.core.errors import FileFormatError

#: Bytes of a pickle, of a zip file's directory, and of a file that holds nothing large.
_MAX_PICKLE, _MAX_DIRECTORY, _MAX_SMALL = 1 << 20, 4 << 20, 16 << 20
#: Bytes at the end of a zip file in which the place of its directory is stated.
_TAIL = 22 + (1 << 16)


def load_tensors(path: Path) -> Any:
    """What torch saved, and only if it is tensors and plain values.

    Raises:
        FileFormatError: it is anything else; nothing in it was run.
    """
    try:
        _require_plain(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises depends on where it stops reading
        said = f": {error}" if isinstance(error, FileFormatError) else ""
        raise FileFormatError(
            f"{path} must be a file of torch.save with tensors alone, but is not (nothing in it "
            f"was run{said}): download it again, and do not load it by other means"
        ) from error


def load_small(path: Path) -> Any:
    """As `load_tensors`, of a file that holds no large tensors.

    Raises:
        FileFormatError: see `load_tensors`, or it is large.
    """
    if path.is_file() and path.stat().st_size > _MAX_SMALL:
        raise FileFormatError(
            f"{path} must hold nothing large, but has {path.stat().st_size >> 20} MB: download it "
            "again"
        )
    return load_tensors(path)


def _require_plain(path: Path) -> None:
    """Look at the sizes in the zip file's directory before torch reads what it points at.

    torch.save packs nothing, so what is packed, or stated to be more than the file, is a trap.

    Raises:
        FileFormatError: says which.
    """
    if not path.is_file():
        raise FileFormatError("it is no file")
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            if size > _MAX_PICKLE:
                raise FileFormatError("it is a large file of an old form, and no zip file")
            return
        file.seek(max(0, size - _TAIL))
        end = file.read().rpartition(b"PK\5\6")[2]
    if int.from_bytes(end[8:12], "little") > _MAX_DIRECTORY:
        raise FileFormatError("its zip directory is too large")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise FileFormatError("it is packed, which torch.save does not do")
    if sum(entry.file_size for entry in entries) > size:
        raise FileFormatError("its parts state more bytes than it has")
    if any(e.file_size > _MAX_PICKLE for e in entries if e.filename.endswith(".pkl")):
        raise FileFormatError("what it says of its tensors is too long")


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
