"""Updates of a lower rank or precision: the nearest ones, and how far off they are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.factors import Factor, Factors
from lorasynth.core.errors import LayoutError

#: Singular values below this share of the largest are rounding of float32.
_NOTHING = 1e-6
#: Matrices whose shorter side is at most this are decomposed as a whole.
_SMALL = 1024


@dataclass(frozen=True)
class Nearest:
    """An update of bounded rank.

    Attributes:
        factor: in float32; of rank 1 at least.
        square: |ΔW|² of what it replaces.
        lost: the squared distance.
    """

    factor: Factor
    square: float
    lost: float


def relative_error(parts: Iterable[Nearest]) -> float:
    """|ΔW - ΔW'| / |ΔW| over several modules."""
    pairs = [(part.lost, part.square) for part in parts]
    total = sum(square for _, square in pairs)
    return (sum(lost for lost, _ in pairs) / total) ** 0.5 if total else 0.0


def truncated(factor: Factor, rank: int, energy: float = 1.0) -> Nearest:
    """The nearest update of at most a rank (Eckart & Young 1936), without the dense matrix.

    Args:
        factor: without batch axes.
        rank: the highest.
        energy: share of |ΔW|² that is enough.

    Raises:
        LayoutError: numbers, or their products, are not finite.
    """
    b, a = factor.B.double(), factor.A.double()
    if factor.rank >= min(factor.in_features, factor.out_features):
        return of_matrix((b @ a).float(), rank, energy)
    left, outer = torch.linalg.qr(b)
    right, inner = torch.linalg.qr(a.mT)
    u, s, vh = _svd(outer @ inner.mT)
    return _kept(left @ u, s, vh @ right.mT, float(s.square().sum()), rank, energy)


def of_matrix(matrix: Float[Tensor, "out in"], rank: int, energy: float = 1.0) -> Nearest:
    """The update of at most a rank that is nearest to a dense one.

    Raises:
        LayoutError: a number is not finite.
    """
    square = float(matrix.double().square().sum())
    if min(matrix.shape) <= _SMALL or not math.isfinite(square):
        u, s, vh = _svd(matrix.double())
    else:  # randomised (Halko et al. 2011), with more columns and steps than such spectra need
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            columns = min(rank + 32, *matrix.shape)
            u, s, v = torch.svd_lowrank(matrix.float(), q=columns, niter=6)
        u, s, vh = u.double(), s.double(), v.mT.double()
    return _kept(u, s, vh, square, rank, energy)


def of_kronecker(
    left: Float[Tensor, "a b"], right: Float[Tensor, "c d"], scale: float, rank: int
) -> Nearest:
    """The nearest to scale·(left ⊗ right), whose singular values are all products of theirs."""
    (u1, s1, v1), (u2, s2, v2) = (_svd(part.double()) for part in (left, right))
    products = (abs(scale) * s1[:, None] * s2[None, :]).flatten()
    square = float(products.square().sum())
    s, order = products.sort(descending=True)
    s = s[: min(rank, _rank_of(s)) or 1]
    first, second = (order // len(s2))[: len(s)], (order % len(s2))[: len(s)]
    u = _columns(u1[:, first], u2[:, second])
    v = _columns(v1[first].mT, v2[second].mT)
    sign = 1.0 if scale >= 0 else -1.0
    return _factor(u * sign, s, v.mT, square)


def _svd(matrix: Float[Tensor, "out in"]) -> tuple[Tensor, Tensor, Tensor]:
    """All singular values and their vectors.

    Raises:
        LayoutError: a number is not finite, or all of them are on the brink of it.
    """
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        s = matrix.new_full((1,), math.nan)
    if not s.isfinite().all():
        raise LayoutError(
            "the numbers of an update, and their products, must be finite, but some are not"
        )
    return u, s, vh


def _columns(one: Float[Tensor, "a k"], other: Float[Tensor, "c k"]) -> Float[Tensor, "ac k"]:
    """The Kronecker product of each column with the other's of the same number."""
    return (one[:, None, :] * other[None, :, :]).flatten(0, 1)


def _rank_of(s: Float[Tensor, " k"]) -> int:
    return int((s > _NOTHING * s[0]).sum()) if len(s) else 0


def _kept(
    u: Float[Tensor, "out k"],
    s: Float[Tensor, " k"],
    vh: Float[Tensor, "k in"],
    square: float,
    rank: int,
    energy: float,
) -> Nearest:
    keep = min(rank, _rank_of(s)) or 1
    if energy < 1:
        enough = s.square().cumsum(0) >= energy * square
        keep = min(keep, 1 + int((~enough).sum()))
    return _factor(u[:, :keep], s[:keep], vh[:keep], square)


def _factor(
    u: Float[Tensor, "out k"], s: Float[Tensor, " k"], vh: Float[Tensor, "k in"], square: float
) -> Nearest:
    root = s.sqrt()
    factor = Factor((root[:, None] * vh).float(), (u * root).float())
    lost = max(0.0, square - float(s.square().sum()))
    return Nearest(factor, square, lost)


def narrowed(factors: Factors, dtype: torch.dtype) -> Factors:
    """Factors in another floating-point type.

    A scale that is folded into B may put its numbers below what float16 resolves, or above what it
    holds, so a power of two moves between A and B: B·2^k and A·2^-k are the same update, and powers
    of two round nothing.  Types of 8 bits, which hold no folded scale, become float16.

    Raises:
        LayoutError: the type cannot hold the numbers.
    """
    dtype = torch.float16 if dtype.itemsize == 1 else dtype
    made = {module: _narrowed(factor, dtype) for module, factor in factors.items()}
    for module, factor in made.items():
        if not all(part.isfinite().all() for part in factor):
            name = str(dtype).removeprefix("torch.")
            raise LayoutError(
                f"numbers must fit into {name}, at most {torch.finfo(dtype).max:g}, but those of "
                f"{module} do not: choose --dtype float32 or bfloat16"
            )
    return made


def _narrowed(factor: Factor, dtype: torch.dtype) -> Factor:
    if dtype == torch.float16 and factor.B.dtype != dtype:
        limits = torch.finfo(dtype)
        sizes = [part.abs() for part in factor]
        largest = [float(size.max()) for size in sizes]
        small = any(bool(((size > 0) & (size < limits.tiny)).any()) for size in sizes)
        if min(largest) > 0 and (small or max(largest) > limits.max):
            shift = round(math.log2(largest[0] / largest[1]) / 2)
            factor = Factor(factor.A * 2.0**-shift, factor.B * 2.0**shift)
    return Factor(factor.A.to(dtype), factor.B.to(dtype))
