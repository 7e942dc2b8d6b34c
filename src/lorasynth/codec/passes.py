"""Passes over vectors that are too many for memory, which go on where they were killed.

A pass adds every block to some sums.  The sums and the next row are its checkpoint; blocks are
always the same, so a pass that was killed and goes on ends with the same bits.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float32
from torch import Tensor

from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.progress import progress
from lorasynth.library.blocks import BlockSource, row_blocks
from lorasynth.library.statistics import Moments, Sums


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
    totals = Sums(source, rows, device)
    mixed = {
        "weights": torch.zeros(width, dtype=torch.float64, device=device),
        "mixtures": torch.zeros(width, source.width, device=device),
    }

    def add(row: int, block: Float32[Tensor, "n D"]) -> None:
        if sketch is not None:
            weights = sketch(row, len(block)).to(device)
            mixed["mixtures"].addmm_(weights, block)
            mixed["weights"] += weights.double().sum(1)
        totals.add(row, block)

    sums = {**totals.tensors, **mixed}
    accumulate(source, rows, add, sums, checkpoint, "moments", less=totals.shift)
    found, moved = totals.moments(), totals.tensors["sum"] / len(source)
    mixtures = mixed["mixtures"].addr_(mixed["weights"].float(), moved.float(), alpha=-1)
    checkpoint.save(
        "moments", {"mean": found.mean, "variance": found.variance, "mixtures": mixtures}
    )
    return found, mixtures
