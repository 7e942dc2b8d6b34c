"""Mean, spread and norms of vectors of any type in one pass, with sums in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorasynth.core.errors import LibraryError
from lorasynth.core.progress import progress
from lorasynth.library.blocks import BlockSource, row_blocks

#: Bytes of a block of vectors that is read at a time.
_BLOCK_BYTES = 64 << 20

#: Columns of a block, and vectors of it, that are widened at a time: they stay in the cache.
_COLUMNS, _VECTORS = 1024, 8


@dataclass(frozen=True)
class Moments:
    """Figures of each number of the vectors."""

    #: Mean of each number.
    mean: Float64[Tensor, " D"]
    #: Variance of each number (of the population).
    variance: Float64[Tensor, " D"]

    @property
    def total(self) -> float:
        """Variance of all numbers together."""
        return float(self.variance.sum())


@dataclass(frozen=True)
class Statistics:
    """Figures of N vectors of width D."""

    moments: Moments
    #: Euclidean norm of each vector.
    norms: Float64[Tensor, " n"]


class Sums:
    """What mean and variance follow from: sums of the vectors less a row near their mean.

    So they do not cancel.  All sums are in float64.

    Args:
        source: the vectors.
        rows: first so many, whose mean is that row.
        device: where to compute.

    Raises:
        LibraryError: there is no vector, or one of these is not finite.
    """

    def __init__(self, source: BlockSource, rows: int, device: torch.device) -> None:
        if len(source) == 0:
            raise LibraryError("statistics need at least one vector, but there is none")
        first = torch.empty(min(rows, len(source)), source.width)
        source.read_block(0, 0, first)
        if not first.isfinite().all():
            raise _not_finite(source, 0, len(first))
        self.source = source
        #: What to subtract from the vectors that are added.
        self.shift = first.double().mean(0).float()
        self._shift = self.shift.to(device).double()
        zero = torch.zeros_like(self._shift)
        #: The sums, changed in place.
        self.tensors = {"sum": zero, "squares": zero.clone()}

    def add(self, row: int, block: Float32[Tensor, "n D"]) -> None:
        """Add the vectors from `row` on, less `shift`.

        Raises:
            LibraryError: a value is not finite.
        """
        ones = block.new_ones(len(block), dtype=torch.float64)
        total, squares = self.tensors.values()
        parts = (x.split(_COLUMNS, dim=-1) for x in (block, total, squares))
        for numbers, of_numbers, of_squares in zip(*parts, strict=True):
            wide = numbers.double()
            of_numbers.addmv_(wide.T, ones)
            of_squares.addmv_(wide.square_().T, ones)
        if not (squares <= torch.finfo(torch.float32).max).all():
            raise _not_finite(self.source, row, len(block))

    def moments(self) -> Moments:
        """Of all vectors, which were added."""
        moved = self.tensors["sum"] / len(self.source)
        variance = (self.tensors["squares"] / len(self.source) - moved.square()).clamp_min_(0)
        return Moments(self._shift + moved, variance)


def streaming_statistics(source: BlockSource) -> Statistics:
    """Statistics of a library, of a part of one, or of a `VectorFile`, which is read once.

    Raises:
        LibraryError: there is no vector, one is not finite, or a shard is damaged.
    """
    rows, here = max(1, _BLOCK_BYTES // (4 * source.width)), torch.device("cpu")
    sums, norms = Sums(source, rows, here), torch.empty(len(source), dtype=torch.float64)
    with progress("statistics", len(source)) as advance:
        for row, block in row_blocks(source, rows, here):
            of_block = norms[row : row + len(block)]
            for numbers, into in zip(block.split(_VECTORS), of_block.split(_VECTORS), strict=True):
                torch.linalg.vector_norm(numbers.double(), dim=1, out=into)
            sums.add(row, block.sub_(sums.shift))
            advance(len(block))
    return Statistics(sums.moments(), norms)


def _not_finite(source: BlockSource, row: int, count: int) -> LibraryError:
    block = torch.empty(count, source.width)
    source.read_block(row, 0, block)
    bad = (~block.isfinite()).any(dim=1).nonzero()
    what = "has NaN or infinity" if len(bad) else "is too large for float32 when squared"
    number = row + (int(bad[0]) if len(bad) else int(block.abs().amax(1).argmax()))
    return LibraryError(
        f"vectors must be finite numbers, but adapter {number} of {len(source)} {what}: check the "
        "library"
    )
