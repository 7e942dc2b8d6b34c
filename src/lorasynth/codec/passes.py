"""Passes over vectors that are too many for memory: blocks of rows, read while others are used.

A pass adds every block to some sums.  The sums and the next row are its checkpoint; blocks are
always the same, so a pass that was killed and goes on ends with the same bits.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from lorasynth.codec.checkpoint import Checkpoint
from lorasynth.errors import LibraryError
from lorasynth.progress import progress


@runtime_checkable
class BlockSource(Protocol):
    """Vectors on disk: a library, one split of it, or a `VectorFile`."""

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the vectors do."""
        ...

    def __len__(self) -> int: ...

    def read_block(
        self,
        row: int,
        column: int,
        out: Float32[Tensor, "n w"],
        less: Float32[Tensor, " w"] | None = None,
    ) -> None:
        """Fill `out` from (row, column) on, less a row."""
        ...


@dataclass(frozen=True)
class Moments:
    """What one pass says about each number of the vectors."""

    #: Mean of each number.
    mean: Float64[Tensor, " D"]
    #: Variance of each number (of the population).
    variance: Float64[Tensor, " D"]

    @property
    def total(self) -> float:
        """Variance of all numbers together."""
        return float(self.variance.sum())


def row_blocks(
    source: BlockSource,
    rows: int,
    device: torch.device,
    less: Float32[Tensor, " D"] | None = None,
    start: int = 0,
) -> Iterator[tuple[int, Float32[Tensor, "n D"]]]:
    """Blocks of `rows` rows from row `start` on; the next is read while one is used.

    A block is overwritten as soon as the next is asked for.
    """
    buffers = torch.empty(2, min(rows, len(source)), source.width)
    starts = range(start, len(source), rows)

    def read(number: int) -> Tensor:
        row = starts[number]
        block = buffers[number % 2, : min(rows, len(source) - row)]
        source.read_block(row, 0, block, less)
        return block

    for row, block in zip(starts, read_ahead(len(starts), read), strict=True):
        yield row, block.to(device)


def read_ahead(count: int, read: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """What `read` gives for 0, 1, ... `count` - 1; the next is read while one is used."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, 0) if count else None
        for number in range(count):
            assert following is not None
            block = following.result()
            following = reader.submit(read, number + 1) if number + 1 < count else None
            yield block


def read_rows(
    source: BlockSource,
    rows: Int64[Tensor, " n"],
    out: Float32[Tensor, "n D"],
    less: Float32[Tensor, " D"] | None = None,
) -> None:
    """Fill `out` with some rows, in the order asked for; they are read in that of the source."""
    for place in rows.argsort().tolist():
        source.read_block(int(rows[place]), 0, out[place : place + 1], less)


def accumulate(
    source: BlockSource,
    rows: int,
    add: Callable[[int, Float32[Tensor, "n D"]], None],
    sums: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    name: str,
    *,
    less: Float32[Tensor, " D"] | None = None,
) -> None:
    """One pass: `add` adds each block of rows (and the number of its first) to `sums`, in place.

    Args:
        source: the vectors.
        rows: of a block.
        add: what to do with a block.
        sums: tensors that `add` changes; those of a checkpoint are put in their place first.
        checkpoint: where sums are kept.
        name: of this pass, other than that of any pass of this computation before.
        less: what to subtract from each vector.
    """
    device = next(iter(sums.values())).device
    start = 0
    saved = checkpoint.load("pass", device)
    if saved is not None and saved.facts["of"] == name:
        start = saved.facts["row"]
        for key, value in sums.items():
            value.copy_(saved.tensors[key])
    del saved
    with progress(name, len(source), done=start) as advance:
        for row, block in row_blocks(source, rows, device, less, start):
            add(row, block)
            advance(len(block))
            if checkpoint.due():
                checkpoint.save("pass", sums, of=name, row=row + len(block))


def moments(
    source: BlockSource,
    rows: int,
    checkpoint: Checkpoint,
    device: torch.device,
    sketch: Callable[[int, int], Float32[Tensor, "l n"]] | None = None,
    width: int = 0,
) -> tuple[Moments, Float32[Tensor, "l D"]]:
    """Mean and variance, and l random mixtures of the centred vectors, in one pass.

    Sums are those of the vectors less the mean of the first block, so they do not cancel; sums over
    a block are in float32, those over blocks in float64.

    Args:
        source: the vectors.
        rows: of a block.
        checkpoint: where to keep what there is.
        device: where to compute.
        sketch: gives the weights of a block's rows (its first row and its length) in the mixtures.
        width: l, the number of mixtures.

    Raises:
        LibraryError: a value is not finite.
    """
    done = checkpoint.load("moments", device)
    if done is not None:
        found = Moments(done.tensors["mean"], done.tensors["variance"])
        return found, done.tensors["mixtures"]
    shift = _first_mean(source, rows)
    sums = {
        "sum": torch.zeros(source.width, dtype=torch.float64, device=device),
        "squares": torch.zeros(source.width, dtype=torch.float64, device=device),
        "weights": torch.zeros(width, dtype=torch.float64, device=device),
        "mixtures": torch.zeros(width, source.width, device=device),
    }

    def add(row: int, block: Float32[Tensor, "n D"]) -> None:
        if sketch is not None:
            weights = sketch(row, len(block)).to(device)
            sums["mixtures"].addmm_(weights, block)
            sums["weights"] += weights.double().sum(1)
        sums["sum"] += block.sum(0)
        squares = block.square_().sum(0)
        if not squares.isfinite().all():
            raise _not_finite(source, row, len(block))
        sums["squares"] += squares

    accumulate(source, rows, add, sums, checkpoint, "moments", less=shift)
    moved = sums["sum"] / len(source)
    mixtures = sums["mixtures"].addr_(sums["weights"].float(), moved.float(), alpha=-1)
    variance = (sums["squares"] / len(source) - moved.square()).clamp_min_(0)
    found = Moments(shift.to(moved) + moved, variance)
    checkpoint.save(
        "moments", {"mean": found.mean, "variance": found.variance, "mixtures": mixtures}
    )
    return found, mixtures


def _first_mean(source: BlockSource, rows: int) -> Float32[Tensor, " D"]:
    first = torch.empty(min(rows, len(source)), source.width)
    source.read_block(0, 0, first)
    if not first.isfinite().all():
        raise _not_finite(source, 0, len(first))
    return first.double().mean(0).float()


def _not_finite(source: BlockSource, row: int, count: int) -> LibraryError:
    block: Float[Tensor, "n D"] = torch.empty(count, source.width)
    source.read_block(row, 0, block)
    bad = (~block.isfinite()).any(dim=1).nonzero()
    what = "has NaN or infinity" if len(bad) else "is too large for float32 when squared"
    number = row + (int(bad[0]) if len(bad) else int(block.abs().amax(1).argmax()))
    return LibraryError(
        f"a codec is fitted to finite numbers, but adapter {number} of {len(source)} {what}: check "
        "the library"
    )
