"""Which way to the principal components: what each costs, and what of it fits in memory."""

import math
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from lorasynth.core.errors import ConfigError

Method = Literal["auto", "exact", "krylov"]
Way = Literal["memory", "gram", "krylov"]

#: Least and most bytes of a block of vectors; two are in memory at a time.
_LEAST_BLOCK, _MOST_BLOCK = 1 << 20, 64 << 20

#: Bytes for what is not counted here: buffers of matrix products, a checkpoint being written.
_SLACK = 96 << 20

#: Steps in which memory that is used or free is counted; Python with torch takes less than two.
_USED_STEP = 256 << 20

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

#: Bytes that a decomposition of an s x s matrix takes for each of its numbers, the matrix included.
_EIGEN = 32

#: Bytes of a number of that matrix itself.
_WHOLE = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A way, and its sizes.

    Attributes:
        way: `memory`: all vectors at once, in float64 (`principal_components`); `gram`: exact,
            block by block (`gram`); `krylov`: to a stated accuracy (`krylov`).
        cost: operations in float32 that take as long.
        peak: bytes that it takes, beside what the process has already.
        rows: vectors of a block.
        columns: numbers of each vector in a block of columns (`gram`, N <= D).
        block: vectors that the covariance is applied to at once (`krylov`).
        capacity: vectors that the basis has room for (`krylov`).
        spill: whether the basis must leave memory while small matrices are decomposed (`krylov`).
    """

    way: Way
    cost: float
    peak: int
    rows: int
    columns: int = 0
    block: int = 0
    capacity: int = 0
    spill: bool = False


def bytes_left(memory: int, device: torch.device) -> int:
    """Bytes of `memory` that the process has left, or a GPU where it has fewer; in coarse steps.

    What is left decides sizes of blocks, and these the last bits of a result: the same command on
    the same machine must find the same.
    """
    used = _USED_STEP * max(-(-int(psutil.Process().memory_info().rss) // _USED_STEP), 2)
    if device.type != "cuda":
        return memory - used
    free, _ = torch.cuda.mem_get_info(device)
    return min(memory - used, free // _USED_STEP * _USED_STEP)


def make_plan(
    n: int, d: int, k: int | None, budget: int, method: Method = "auto", *, spill: bool = True
) -> Plan:
    """The quickest way among those that fit; all at once in memory where that is quick.

    Args:
        n: number of vectors.
        d: their width.
        k: components wanted; None for all.
        budget: bytes that may be added to what the process has.
        method: `auto`, `exact` or `krylov`.
        spill: whether there is a folder for what must leave memory.

    Raises:
        ConfigError: none fits.
    """
    least = min(n, d)
    wanted = least if k is None else min(k, least)
    exact = [_in_memory(n, d), _gram(n, d, wanted, budget)]
    krylov = _krylov(n, d, wanted, budget, spill=spill)
    ways = [] if method == "krylov" else exact
    if method == "krylov" or (method == "auto" and _GROWTH * wanted < least):
        ways = [*ways, krylov]
    fitting = [way for way in ways if way.peak <= budget]
    if not fitting:
        needed = min(way.peak for way in ways)
        raise ConfigError(
            f"PCA of {n} vectors of width {d} with {k or 'all'} latents takes at least "
            f"{needed / 1e9:.2f} GB beside the program's own, but {max(budget, 0) / 1e9:.2f} GB "
            "are left: give it more memory, or ask for fewer latents"
        )
    first = fitting[0]
    if first.way == "memory" and first.cost <= _QUICK:
        return first
    return min(fitting, key=lambda way: way.cost)


def _in_memory(n: int, d: int) -> Plan:
    least = min(n, d)
    cost = _WIDE * (4.0 * n * d * least + 10.0 * least**3)
    return Plan(way="memory", cost=cost, peak=40 * n * d + _EIGEN * least**2 + _SLACK, rows=n)


def _gram(n: int, d: int, k: int, budget: int) -> Plan:
    rows, least = _rows(n, d, budget), min(n, d)
    cost = _WIDE * (1.2 * n * d * least + 10.0 * least**3)
    if n > d:
        peak = _EIGEN * d**2 + 12 * k * d + 24 * rows * d
        return Plan(way="gram", cost=cost, peak=peak + _SLACK, rows=rows)
    columns = max(16, min(d, _block_bytes(budget) // (8 * n)))
    peak = max(_EIGEN * n**2, 8 * n**2 + 16 * k * n + 4 * k * d) + 20 * n * columns
    peak += 8 * rows * d
    cost += _WIDE * 2.0 * n * d * k
    return Plan(way="gram", cost=cost, peak=peak + _SLACK, rows=rows, columns=columns)


def _krylov(n: int, d: int, k: int, budget: int, *, spill: bool) -> Plan:
    """With blocks of k/4 vectors, or smaller ones where these leave too little for the basis.

    They are never so small that `MOST_BLOCKS` of them are too few.
    """
    least = max(_LEAST_VECTORS, math.ceil(_GROWTH * k / MOST_BLOCKS))
    block = max(least, -(-k // 4), min(k, _GOOD_VECTORS))
    while True:
        plan = _krylov_in_blocks(n, d, k, budget, block, spill=spill)
        fits = plan.peak <= budget and 12 * d * block <= budget // _BLOCK_SHARE
        if fits or block == least:
            return plan
        block = max(least, block // 2)


def _krylov_in_blocks(n: int, d: int, k: int, budget: int, block: int, *, spill: bool) -> Plan:
    rows, least = _rows(n, d, budget), min(n, d)
    fixed = 12 * d * block + 8 * rows * d + _SLACK
    smallest, best = k + 2 * block, math.ceil(1.2 * _GROWTH * k) + 3 * block
    room = max(budget - fixed, 0)
    together = _side(4 * d, _EIGEN, room)
    # where the basis may leave memory, it is there with H alone, or H's decomposition is
    apart = min(_side(4 * d, _WHOLE, room), _side(0, _EIGEN, room))
    spilled = spill and together < smallest
    capacity = max(smallest, min(best, least + block, apart if spilled else together))
    basis, eigen = 4 * d * capacity, _EIGEN * capacity**2
    peak = fixed + (max(basis + _WHOLE * capacity**2, eigen) if spilled else basis + eigen)
    cost = 4.0 * n * d * _GROWTH * k + 8.0 * d * (_GROWTH * k) ** 2
    return Plan(
        way="krylov",
        cost=cost,
        peak=peak,
        rows=rows,
        block=block,
        capacity=capacity,
        spill=spilled,
    )


def _side(linear: int, square: int, room: int) -> int:
    """The largest m with square·m² + linear·m <= room."""
    return int((math.sqrt(linear**2 + 4.0 * square * room) - linear) / (2.0 * square))


def _block_bytes(budget: int) -> int:
    return min(max(budget // 24, _LEAST_BLOCK), _MOST_BLOCK)


def _rows(n: int, d: int, budget: int) -> int:
    return max(1, min(n, _block_bytes(budget) // (4 * d)))
