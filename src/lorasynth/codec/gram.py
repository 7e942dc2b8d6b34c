"""All eigenvectors of a covariance whose smaller side fits in memory: exact, in float64.

N vectors of width D >= N: their N x N inner products, summed over blocks of columns, so the data is
read once, and once more for the components.  N > D: the D x D covariance, summed over blocks of
rows.
"""

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorasynth.codec.sources import accumulate
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.progress import progress
from lorasynth.library.blocks import BlockSource
from lorasynth.library.statistics import Moments

#: Strips that a symmetric product is computed in: only those parts that are on or below its
#: diagonal, so it costs little more than half.
_STRIPS = 8


def eigen_of_rows(
    source: BlockSource,
    moments: Moments,
    unit: Float64[Tensor, " D"],
    columns: int,
    k: int,
    checkpoint: Checkpoint,
) -> tuple[Float32[Tensor, "r D"], Float64[Tensor, " all"]]:
    """Through the inner products of N <= D vectors, with `columns` columns in memory.

    Args:
        source: the vectors.
        moments: of them.
        unit: what each parameter is divided by.
        columns: of a block.
        k: components wanted at most.
        checkpoint: where the sums are kept.

    Returns:
        The r leading components, and all eigenvalues, falling.
    """
    count, device = len(source), unit.device
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    blocks = range(0, source.width, columns)
    buffer = torch.empty(count * columns)

    def block(column: int) -> Float64[Tensor, "n w"]:
        last = min(column + columns, source.width)
        out = buffer[: count * (last - column)].view(count, last - column)
        source.read_block(0, column, out)
        return out.to(device).double().sub_(moments.mean[column:last]).div_(unit[column:last])

    start = 0
    saved = checkpoint.load("gram", device)
    if saved is not None:
        start = saved.facts["column"]
        gram.copy_(saved.tensors["gram"])
    del saved
    with progress("inner products", source.width, done=start) as advance:
        for column in blocks[start // columns :]:
            part = block(column)
            _add_square(gram, part)
            advance(part.shape[1])
            if checkpoint.due():
                checkpoint.save("gram", {"gram": gram}, column=column + columns)
    values, vectors = torch.linalg.eigh(_whole(gram))
    del gram
    order = values.argsort(descending=True)
    kept = order[:k]
    turns = (vectors[:, kept] / values[kept].clamp_min(1e-300).sqrt()).T
    components = torch.empty(len(kept), source.width, device=device)
    with progress("components", source.width) as advance:
        for column in blocks:
            part = block(column)
            components[:, column : column + columns] = turns @ part
            advance(part.shape[1])
    return components, values[order]


def eigen_of_columns(
    source: BlockSource,
    moments: Moments,
    unit: Float64[Tensor, " D"],
    rows: int,
    k: int,
    checkpoint: Checkpoint,
) -> tuple[Float32[Tensor, "r D"], Float64[Tensor, " all"]]:
    """Through the covariance (times N) of N > D vectors, with `rows` rows in memory.

    See `eigen_of_rows` for what else it takes and returns.
    """
    sums = {"covariance": unit.new_zeros(source.width, source.width)}

    def add(_row: int, block: Float32[Tensor, "n D"]) -> None:
        _add_square(sums["covariance"], block.double().sub_(moments.mean).div_(unit).T)

    accumulate(source, rows, add, sums, checkpoint, "covariance")
    values, vectors = torch.linalg.eigh(_whole(sums["covariance"]))
    order = values.argsort(descending=True)
    return vectors[:, order[:k]].T.float().contiguous(), values[order]


def _add_square(total: Float64[Tensor, "s s"], rows: Float64[Tensor, "s w"]) -> None:
    """Add rows·rowsᵀ, on and below the diagonal: in strips, whose first squares are whole."""
    step = -(-len(rows) // _STRIPS)
    for start in range(0, len(rows), step):
        total[start:, start : start + step].addmm_(rows[start:], rows[start : start + step].T)


def _whole(lower: Float64[Tensor, "s s"]) -> Float64[Tensor, "s s"]:
    """The symmetric matrix of which `_add_square` made the lower half, in its memory."""
    step = -(-len(lower) // _STRIPS)
    for start in range(0, len(lower), step):
        below = lower[start + step :, start : start + step]
        lower[start : start + step, start + step :] = below.T
    return lower
