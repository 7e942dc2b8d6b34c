"""Vectors in an `.npy` file, read in blocks by plain reads.

Mapped pages count as memory of the process that reads them; what is read here lands in the caller's
own tensor, so a job's memory is what it asked for.  bf16, which `.npy` does not know, is stored as
the 16-bit integers of the same bits; nothing else here is stored as integers.
"""

import io
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.lib import format as npy
from torch import Tensor

from lorasynth.core.errors import LibraryError

#: Types that vectors are stored in.
Stored: TypeAlias = Literal["float32", "float16", "bfloat16"]

_TYPES = {"<f4": torch.float32, "<f2": torch.float16, "<u2": torch.bfloat16}

#: Bytes of one read: few enough to stay in the processor's cache until they are converted.
_READ_BYTES = 1 << 21


def write_vectors(path: Path, vectors: Float[Tensor, "n D"]) -> None:
    """Write vectors as they are, in float32, float16 or bfloat16."""
    array = vectors.detach().cpu().contiguous()
    bits = array.view(torch.uint16) if array.dtype == torch.bfloat16 else array
    np.save(path, bits.numpy(), allow_pickle=False)


class VectorFile:
    """N vectors of width D in an `.npy` file that `write_vectors` (or NumPy) wrote.

    Attributes:
        width: D.
        dtype: type that they are stored in; they are read as float32.

    Raises:
        LibraryError: the file is missing or damaged, or is not a C-ordered matrix of such a type.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            shape, self._offset, code = _read_header(self.path)
        except Exception as error:  # NumPy parses the header as Python's own literals
            raise self._unusable(str(error)) from error
        if len(shape) != 2 or code not in _TYPES:
            raise self._unusable(f"it has the shape {shape} and the type {code}")
        self._count, self.width = shape
        self.dtype = _TYPES[code]
        size, expected = self.path.stat().st_size, self._offset + self._count * self._row_bytes
        if size != expected:
            raise self._unusable(f"it has {size} bytes instead of {expected}")

    def __len__(self) -> int:
        """Number of vectors N."""
        return self._count

    @property
    def fingerprint(self) -> str:
        """Changes when the file does."""
        stat = self.path.stat()
        return f"{self.path.name} {self._count} {self.width} {stat.st_size} {stat.st_mtime_ns}"

    def read_block(self, row: int, column: int, out: Float32[Tensor, "n w"]) -> None:
        """Fill `out` with the block that begins at (row, column).

        Args:
            row: first row.
            column: first column.
            out: n x w numbers in the processor's memory; its shape says how much is read.

        Raises:
            LibraryError: the block reaches beyond the vectors, or the file cannot be read.
        """
        count, width = out.shape
        self._require_within(row, column, count, width)
        step = max(1, _READ_BYTES // (max(width, 1) * self.dtype.itemsize))
        scratch = torch.empty(min(step, count), width, dtype=self.dtype)
        with self._open() as file:
            for start in range(0, count, step):
                rows = out[start : start + step]
                piece = scratch[: len(rows)]
                self._fill(file, piece, row + start, column)
                rows.copy_(piece)

    def all_vectors(self) -> Float32[Tensor, "n D"]:
        """All vectors."""
        result = torch.empty(self._count, self.width)
        self.read_block(0, 0, result)
        return result

    def _require_within(self, row: int, column: int, count: int, width: int) -> None:
        if row < 0 or column < 0 or row + count > self._count or column + width > self.width:
            raise LibraryError(
                f"a block must lie within the {self._count} x {self.width} vectors of {self.path}, "
                f"but got {count} x {width} at ({row}, {column})"
            )

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def _open(self) -> io.FileIO:
        try:
            return io.FileIO(self.path)
        except OSError as error:
            raise self._unusable(str(error)) from error

    def _fill(self, file: io.FileIO, piece: Tensor, row: int, column: int) -> None:
        """Read rows from `row` on, from `column` on, into a tensor of the stored type."""
        start = self._offset + row * self._row_bytes + column * self.dtype.itemsize
        if piece.shape[1] == self.width:
            self._read(file, piece, start)
            return
        for place in range(len(piece)):
            self._read(file, piece[place], start + place * self._row_bytes)

    def _read(self, file: io.FileIO, piece: Tensor, start: int) -> None:
        """Fill a contiguous tensor from a place in the file on."""
        data, done = memoryview(piece.view(-1).view(torch.uint8).numpy()), 0  # type: ignore[arg-type]
        try:
            file.seek(start)
            while done < len(data):
                count = file.readinto(data[done:])
                if not count:
                    raise self._unusable("it is shorter than its header says")
                done += count
        except OSError as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, reason: str) -> LibraryError:
        first = (reason.splitlines() or ["it is damaged"])[0]
        return LibraryError(f"{self.path} must be an .npy file of vectors, but is not ({first})")


def _read_header(path: Path) -> tuple[tuple[int, ...], int, str]:
    """Shape, where the numbers begin, and the code of their type."""
    if not path.is_file():
        raise OSError("it is missing, or no file")
    with path.open("rb") as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran or dtype.hasobject:
            raise ValueError("it is not a C-ordered matrix of numbers")
        return shape, file.tell(), dtype.str
