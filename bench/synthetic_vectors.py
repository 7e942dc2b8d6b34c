"""Vectors whose principal components are known: any number and width, made row by row.

    X = mean + √N · U · √Λ · Vᵀ,   Λ = diag(variances), falling as a power law

The columns of U are cosines (the orthonormal DCT-II of length N without its constant), its rows in
random order: they are orthonormal and sum to zero exactly, so the covariance of the N vectors is
V·Λ·Vᵀ, not only in expectation.  V is the DCT of length D with random signs and its frequencies in
random order.  So no matrix is stored: a row takes one fast transform, and the variance that any
subspace captures takes one for each of its dimensions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from numpy.lib import format as npy
from torch import Tensor

from lorasynth.core.atomic import atomic_file
from lorasynth.core.progress import progress
from lorasynth.core.randomness import torch_stream

#: Bytes of float64 that rows are made in at a time.
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What vectors.

    Attributes:
        rows: N.
        width: D.
        decay: variances fall as rank^-decay; with the default 10,000 of the 64,973 components of
            64,974 vectors of width 99,648 hold 95 % of the variance.
        spread: root mean square of the standard deviations of the numbers.
        seed: of signs and orders.
    """

    rows: int
    width: int
    decay: float = 1.1971
    spread: float = 0.02
    seed: int = 0


class SyntheticVectors:
    """Vectors with known mean, components and variances along them."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.rank = min(config.rows - 1, config.width)

    def __len__(self) -> int:
        """Number of vectors N."""
        return self.config.rows

    @cached_property
    def variances(self) -> Float64[Tensor, " r"]:
        """Variances along the components, falling; the covariance has no others."""
        falling = torch.arange(1, self.rank + 1, dtype=torch.float64) ** -self.config.decay
        return falling * (self.config.spread**2 * self.config.width / falling.sum())

    @cached_property
    def mean(self) -> Float64[Tensor, " D"]:
        """Mean of all vectors."""
        stream = torch_stream(self.config.seed, "synthetic", "mean")
        return self.config.spread * torch.randn(
            self.config.width, generator=stream, dtype=torch.float64
        )

    def rows(self, start: int, stop: int) -> Float32[Tensor, "n D"]:
        """Some of the vectors."""
        count = self.config.rows
        places = self._places[start:stop, None]
        angles = (2 * places + 1) * torch.arange(1, self.rank + 1) % (4 * count)
        along = self._cosines[angles] * (2 * self.variances).sqrt()
        spectrum = torch.zeros(len(places), self.config.width)
        spectrum[:, self._frequencies] = along.float()
        return _inverse_dct(spectrum).mul_(self._signs).add_(self.mean)

    def components(self, start: int, stop: int) -> Float64[Tensor, "n D"]:
        """Some of the components: orthonormal rows."""
        spectrum = torch.zeros(stop - start, self.config.width, dtype=torch.float64)
        spectrum[torch.arange(stop - start), self._frequencies[start:stop]] = 1
        return _inverse_dct(spectrum).mul_(self._signs)

    def captured(self, basis: Float[Tensor, "k D"]) -> float:
        """The variance within the span of orthonormal rows."""
        step = max(1, _BLOCK_BYTES // (8 * self.config.width))
        parts = (_dct(rows.double() * self._signs) for rows in basis.split(step))
        return sum(
            float((part[:, self._frequencies].square() @ self.variances).sum()) for part in parts
        )

    def write(self, path: Path, dtype: Literal["float32", "float16"] = "float32") -> None:
        """Write all vectors as an `.npy` file, a block at a time."""
        stored = np.dtype(dtype).newbyteorder("<")
        shape = (self.config.rows, self.config.width)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            npy.write_array_header_2_0(
                file, {"descr": stored.str, "fortran_order": False, "shape": shape}
            )
            for block in self.blocks():
                block.numpy().astype(stored, copy=False).tofile(file)

    def blocks(self) -> Iterator[Float32[Tensor, "n D"]]:
        """All vectors in blocks of rows."""
        step = max(1, _BLOCK_BYTES // (8 * self.config.width))
        with progress("vectors", self.config.rows) as advance:
            for start in range(0, self.config.rows, step):
                block = self.rows(start, min(start + step, self.config.rows))
                yield block
                advance(len(block))

    @cached_property
    def _places(self) -> Tensor:
        """Which row of the DCT each vector has."""
        stream = torch_stream(self.config.seed, "synthetic", "places")
        return torch.randperm(self.config.rows, generator=stream)

    @cached_property
    def _frequencies(self) -> Tensor:
        """Which row of the DCT each component has."""
        stream = torch_stream(self.config.seed, "synthetic", "frequencies")
        return torch.randperm(self.config.width, generator=stream)[: self.rank]

    @cached_property
    def _signs(self) -> Float64[Tensor, " D"]:
        stream = torch_stream(self.config.seed, "synthetic", "signs")
        return torch.randint(0, 2, (self.config.width,), generator=stream).double() * 2 - 1

    @cached_property
    def _cosines(self) -> Float64[Tensor, " m"]:
        """Cosines of the 4·N angles that occur."""
        steps = torch.arange(4 * self.config.rows, dtype=torch.float64)
        return torch.cos(steps * (math.pi / (2 * self.config.rows)))


def _dct(rows: Float64[Tensor, "n D"]) -> Float64[Tensor, "n D"]:
    """The orthonormal DCT-II of each row (Makhoul 1980: one FFT of the row, evens then odds)."""
    width = rows.shape[1]
    shuffled = torch.cat([rows[:, ::2], rows[:, 1::2].flip(1)], 1)
    half = torch.fft.rfft(shuffled) * _turns(width)
    spectrum = torch.empty_like(rows)
    spectrum[:, : half.shape[1]] = half.real
    spectrum[:, half.shape[1] :] = -half.imag[:, 1 : width - half.shape[1] + 1].flip(1)
    return spectrum * _lengths(width)


def _inverse_dct(spectrum: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """The inverse, and transpose, of `_dct`, in the precision of the argument."""
    width = spectrum.shape[1]
    scaled = spectrum / _lengths(width).to(spectrum)
    half = torch.zeros(len(scaled), width // 2 + 1, dtype=spectrum.dtype.to_complex())
    half.real.copy_(scaled[:, : half.shape[1]])
    half.imag[:, 1:] = -scaled[:, width - half.shape[1] + 1 :].flip(1)
    shuffled = torch.fft.irfft(half.mul_(_turns(width).conj()), n=width)
    rows = torch.empty_like(spectrum)
    evens = -(-width // 2)
    rows[:, ::2], rows[:, 1::2] = shuffled[:, :evens], shuffled[:, evens:].flip(1)
    return rows


def _turns(width: int) -> Tensor:
    angles = torch.arange(width // 2 + 1, dtype=torch.float64) * (-math.pi / (2 * width))
    return torch.polar(torch.ones_like(angles), angles)


def _lengths(width: int) -> Float64[Tensor, " D"]:
    """What makes each row of the DCT one long."""
    lengths = torch.full((width,), math.sqrt(2 / width), dtype=torch.float64)
    lengths[0] = math.sqrt(1 / width)
    return lengths
