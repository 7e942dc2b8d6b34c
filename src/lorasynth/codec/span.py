"""The span of a few long vectors, in which a network of them is as small as they are few.

Vectors outside of it are never seen, so there is nothing to learn about them: weights of the first
layer that read there would stay as they were drawn, and add noise to whatever is encoded later.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorasynth.codec.pca import substantial
from lorasynth.randomness import torch_stream

#: Columns in float64 at a time.
_COLUMNS = 4096


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
        products = sum(part.double() @ part.double().T for part in x.split(_COLUMNS, dim=1))
        assert isinstance(products, Tensor)
        values, vectors = torch.linalg.eigh(products)
        kept = substantial(values)
        vectors, lengths = vectors[:, kept], values[kept].sqrt()
        turn = _rotation(len(kept), seed).to(vectors)
        combine = turn @ (vectors / lengths).T
        parts = [(combine @ part.double()).to(x) for part in x.split(_COLUMNS, dim=1)]
        unit = (x.shape[1] / len(kept)) ** 0.5
        coordinates = (vectors * lengths) @ turn.T / unit
        return cls(torch.cat(parts, dim=1), coordinates.to(x), unit)


def _rotation(size: int, seed: int) -> Float64[Tensor, "r r"]:
    noise = torch.randn(size, size, generator=torch_stream(seed, "span"), dtype=torch.float64)
    rotation: Tensor = torch.linalg.qr(noise).Q
    return rotation
