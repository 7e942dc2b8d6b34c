"""The span of a few long vectors, in which a network of them is as small as they are few.

Vectors outside of it are never seen, so there is nothing to learn about them: weights of the first
layer that read there would stay as they were drawn, and add noise to whatever is encoded later.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from lorasynth.core.device import exact, exact_device
from lorasynth.core.randomness import torch_stream

#: Columns in float64 at a time.
_COLUMNS = 4096

#: Directions in which all vectors together are shorter, as a share of them, are rounding errors.
_NOISE = 1e-6


@dataclass(frozen=True)
class Span:
    """An orthonormal basis in no particular direction, and vectors in its coordinates.

    Attributes:
        basis: of all r dimensions in which the vectors differ from zero.
        coordinates: of the vectors, divided by `unit`.
        unit: the root of D / r: mean squares are the same of vectors and coordinates.
    """

    basis: Float[Tensor, "r D"]
    coordinates: Float[Tensor, "n r"]
    unit: float

    @classmethod
    def of(cls, x: Float[Tensor, "n D"], seed: int) -> "Span":
        """Through the inner products of the vectors, in float64.

        The basis is turned at random, so that its numbers are alike, as those of vectors are; in
        coordinates along principal components, which differ by orders, Adam ends at a higher loss.

        Args:
            x: vectors, at least one of them not zero; n is at most D.
            seed: of the turn.
        """
        basis = orthonormalise(x.clone(), _NOISE * float(x.norm()))
        basis = _rotation(len(basis), seed).to(x) @ basis
        unit = (x.shape[1] / len(basis)) ** 0.5
        return cls(basis, x @ basis.T / unit, unit)


def orthonormalise(rows: Float32[Tensor, "l D"], noise: float = 0.0) -> Float32[Tensor, "m D"]:
    """An orthonormal basis of the rows' span, in their memory.

    Directions whose length is at most `noise` are left out.
    """
    if len(rows) == 0:
        return rows
    home = exact_device(rows.device)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=home)
    for part in rows.split(_COLUMNS, dim=1):
        wide = exact(part)
        gram.addmm_(wide, wide.T)
    squares, turns = torch.linalg.eigh(gram)
    keep = squares > max(noise**2, 1e-14 * float(squares[-1]))
    change = (turns[:, keep] / squares[keep].sqrt()).T
    for part in rows.split(_COLUMNS, dim=1):
        part[: len(change)] = change @ exact(part)
    return rows[: len(change)]


def _rotation(size: int, seed: int) -> Float64[Tensor, "r r"]:
    noise = torch.randn(size, size, generator=torch_stream(seed, "span"), dtype=torch.float64)
    rotation: Tensor = torch.linalg.qr(noise).Q
    return rotation
