"""Vectors that are too many for memory: blocks of rows, read while others are used."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

#: Two threads that read rows: a disk answers two at once better than one after another, and what is
#: in memory already is read no faster by more.  They live on, since a thread's first call of torch
#: takes milliseconds.
_READERS = ThreadPoolExecutor(2)


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

    def read_block(self, row: int, column: int, out: Float32[Tensor, "n w"]) -> None:
        """Fill `out` from (row, column) on."""
        ...


def row_blocks(
    source: BlockSource,
    rows: int,
    device: torch.device,
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
        source.read_block(row, 0, block)
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


def read_rows(source: BlockSource, rows: Int64[Tensor, " n"], out: Float32[Tensor, "n D"]) -> None:
    """Fill `out` with some rows, in the order asked for; halves of them, in that of the source."""

    def read(part: Sequence[tuple[int, int]]) -> None:
        for row, place in part:
            source.read_block(row, 0, out[place : place + 1])

    order = sorted((row, place) for place, row in enumerate(rows.tolist()))
    half = len(order) // 2
    for _ in _READERS.map(read, (order[:half], order[half:])):
        pass
