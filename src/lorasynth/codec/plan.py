"""Gram or Krylov: what each way to the principal components costs, and what fits in memory."""

import math
from dataclasses import dataclass
from typing import Literal

from lorasynth.core.errors import ConfigError

#: Least and most bytes of a block of vectors; two are in memory at a time.
_LEAST_BLOCK, _MOST_BLOCK = 1 << 20, 64 << 20

#: Bytes for what is not counted here: buffers of matrix products, a checkpoint being written.
_SLACK = 96 << 20

#: What an operation in float64 costs, in those of float32.
_WIDE = 2.0

#: Operations that are quick enough to be exact whatever else is quicker: about half a minute.
_QUICK = 2e12

#: Vectors in a Krylov basis, in those wanted, when it ends; the default tolerance took 2 to 2.5.
_GROWTH = 2.25

#: What part of the memory a Krylov block, its image and its scaled copy may take: one in so many.
#: Smaller blocks need fewer vectors in all, but read the data more often.
_BLOCK_SHARE = 5

#: Vectors in a Krylov block at least.
_LEAST_VECTORS = 8

#: Krylov blocks after which it ends in any case; the report says how far it came.
MOST_BLOCKS = 200

#: Below so many, products are slow and reading takes longer than they do.
_GOOD_VECTORS = 64

#: Bytes that a decomposition of an s x s matrix takes for each of its entries, itself included.
_EIGEN = 32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A way, and its sizes.

    Attributes:
        way: `gram`: exact (`gram`); `krylov`: to a stated accuracy (`krylov`).
        cost: operations in float32 that take as long.
        peak: bytes that it takes, beside what the process has already.
        rows: vectors of a block.
        columns: entries of each vector in a block of columns (`gram`, N <= D).
        block: vectors that the covariance is applied to at once (`krylov`).
        capacity: vectors that the basis has room for (`krylov`).
    """

    way: Literal["gram", "krylov"]
    cost: float
    peak: int
    rows: int
    columns: int = 0
    block: int = 0
    capacity: int = 0


def make_plan(n: int, d: int, k: int | None, left: int) -> Plan:
    """The exact way where that fits and is quick; else the quicker of those that fit.

    Args:
        n: number of vectors.
        d: their width.
        k: components wanted; None for all.
        left: bytes that may be added to what the process has.

    Raises:
        ConfigError: none fits.
    """
    least = min(n, d)
    wanted = least if k is None else min(k, least)
    ways = [_gram(n, d, wanted, left)]
    if _GROWTH * wanted < least:
        ways.append(_krylov(n, d, wanted, left))
    fitting = [way for way in ways if way.peak <= left]
    if not fitting:
        needed = min(way.peak for way in ways)
        raise ConfigError(
            f"PCA of {n} vectors of width {d} with {k or 'all'} latents takes at least "
            f"{needed / 1e9:.2f} GB beside the program's own, but {max(left, 0) / 1e9:.2f} GB "
            "are left: give it more memory, or ask for fewer latents"
        )
    first = fitting[0]
    if first.way == "gram" and first.cost <= _QUICK:
        return first
    return min(fitting, key=lambda way: way.cost)


def _gram(n: int, d: int, k: int, left: int) -> Plan:
    rows, least = _rows(n, d, left), min(n, d)
    cost = _WIDE * (1.2 * n * d * least + 10.0 * least**3)
    if n > d:
        peak = _EIGEN * d**2 + 12 * k * d + 24 * rows * d
        return Plan(way="gram", cost=cost, peak=peak + _SLACK, rows=rows)
    columns = max(16, min(d, _block_bytes(left) // (8 * n)))
    peak = max(_EIGEN * n**2, 8 * n**2 + 16 * k * n + 4 * k * d) + 20 * n * columns
    peak += 8 * rows * d
    cost += _WIDE * 2.0 * n * d * k
    return Plan(way="gram", cost=cost, peak=peak + _SLACK, rows=rows, columns=columns)


def _krylov(n: int, d: int, k: int, left: int) -> Plan:
    """With blocks of k/4 vectors, or smaller ones where these leave too little for the basis.

    They are never so small that `MOST_BLOCKS` of them are too few.
    """
    least = max(_LEAST_VECTORS, math.ceil(_GROWTH * k / MOST_BLOCKS))
    block = max(least, -(-k // 4), min(k, _GOOD_VECTORS))
    while True:
        plan = _krylov_in_blocks(n, d, k, left, block)
        fits = plan.peak <= left and 12 * d * block <= left // _BLOCK_SHARE
        if fits or block == least:
            return plan
        block = max(least, block // 2)


def _krylov_in_blocks(n: int, d: int, k: int, left: int, block: int) -> Plan:
    rows, least = _rows(n, d, left), min(n, d)
    fixed = 12 * d * block + 8 * rows * d + _SLACK
    smallest, best = k + 2 * block, math.ceil(1.2 * _GROWTH * k) + 3 * block
    # the largest m with _EIGEN m² + 4 d m bytes
    room = math.sqrt((4.0 * d) ** 2 + 4.0 * _EIGEN * max(left - fixed, 0)) - 4.0 * d
    capacity = max(smallest, min(best, least + block, int(room / (2 * _EIGEN))))
    peak = fixed + 4 * d * capacity + _EIGEN * capacity**2
    cost = 4.0 * n * d * _GROWTH * k + 8.0 * d * (_GROWTH * k) ** 2
    return Plan(way="krylov", cost=cost, peak=peak, rows=rows, block=block, capacity=capacity)


def _block_bytes(left: int) -> int:
    return min(max(left // 24, _LEAST_BLOCK), _MOST_BLOCK)


def _rows(n: int, d: int, left: int) -> int:
    return max(1, min(n, _block_bytes(left) // (4 * d)))
