"""What codecs are fitted to: rows in blocks, from a file or from memory; passes that can resume.

A pass adds every block to some sums.  The sums and the next row are its checkpoint; blocks are
always the same, so a pass that was killed and goes on ends with the same bits.
"""

from collections.abc import Callable, Mapping, Sized
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorasynth.codec.config import Budget
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.errors import LibraryError
from lorasynth.core.progress import progress
from lorasynth.core.weights import fingerprint_of
from lorasynth.library.blocks import BlockSource, row_blocks
from lorasynth.library.statistics import Moments, Sums

#: Steps in which memory that is used or free is counted; Python with torch takes less than two.
_USED_STEP = 256 << 20


class TensorSource:
    """Vectors in memory, as blocks."""

    def __init__(self, vectors: Float[Tensor, "n D"]) -> None:
        self.vectors = vectors

    @property
    def width(self) -> int:
        """D."""
        return self.vectors.shape[1]

    @property
    def fingerprint(self) -> str:
        """Changes when the vectors do."""
        return fingerprint_of({"vectors": self.vectors}, values=1 << 20)

    def __len__(self) -> int:
        return len(self.vectors)

    def read_block(self, row: int, column: int, out: Float32[Tensor, "n w"]) -> None:
        """Fill `out` from (row, column) on."""
        rows, columns = out.shape
        out.copy_(self.vectors[row : row + rows, column : column + columns])


def require_several(vectors: Sized) -> None:
    """Refuse what no codec can be fitted to.

    Raises:
        LibraryError: there are fewer than two vectors.
    """
    if len(vectors) < 2:
        raise LibraryError(
            f"a codec is fitted to two or more adapters, but got {len(vectors)}: collect more"
        )


def bytes_left(budget: Budget) -> int:
    """Bytes that the process may still take, or a GPU where it has fewer; in coarse steps.

    What is left decides sizes of blocks, and these the last bits of a result: the same command on
    the same machine must find the same.
    """
    import psutil  # not needed where a codec is only loaded

    memory = int(psutil.virtual_memory().total) // 2 if budget.memory is None else budget.memory
    used = _USED_STEP * max(-(-int(psutil.Process().memory_info().rss) // _USED_STEP), 2)
    device = torch.device(budget.device)
    if device.type != "cuda":
        return memory - used
    free, _ = torch.cuda.mem_get_info(device)
    return min(memory - used, free // _USED_STEP * _USED_STEP)


def settled(
    budget: Budget, identity: Mapping[str, Any], plan: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """How a fit goes about it: as at the run's first start, or by a new plan.

    A plan depends on the memory that the process has by now, which differs from run to run.
    """
    kept = Checkpoint(budget.run, {"plan of": identity}, 0.0)
    saved = kept.load("plan")
    if saved is not None:
        return saved.facts
    facts = plan()
    kept.save("plan", {}, **facts)
    return facts


def accumulate(
    source: BlockSource,
    rows: int,
    add: Callable[[int, Float32[Tensor, "n D"]], None],
    sums: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    name: str,
) -> None:
    """One pass: `add` adds each block of rows (and the number of its first) to `sums`, in place.

    Args:
        source: the vectors.
        rows: of a block.
        add: what to do with a block, which it may change.
        sums: tensors that `add` changes; those of a checkpoint are put in their place first.
        checkpoint: where sums are kept.
        name: of this pass, other than that of any pass of this computation before.
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
        for row, block in row_blocks(source, rows, device, start):
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
) -> tuple[Moments, Float32[Tensor, "l D"]]:
    """Mean and variance, and l random mixtures of the centred vectors, in one pass.

    Args:
        source: the vectors.
        rows: of a block.
        checkpoint: where to keep what there is.
        device: where to compute.
        sketch: gives the weights of a block's rows (its first row and its length) in the mixtures.

    Raises:
        LibraryError: a value is not finite.
    """
    done = checkpoint.load("moments", device)
    if done is not None:
        found = Moments(done.tensors["mean"], done.tensors["variance"])
        return found, done.tensors["mixtures"]
    totals, width = Sums(source, rows, device), 0 if sketch is None else len(sketch(0, 1))
    mixed = {
        "weights": torch.zeros(width, dtype=torch.float64, device=device),
        "mixtures": torch.zeros(width, source.width, device=device),
    }

    shift = totals.shift.to(device)

    def add(row: int, block: Float32[Tensor, "n D"]) -> None:
        block.sub_(shift)
        if sketch is not None:
            weights = sketch(row, len(block)).to(device)
            mixed["mixtures"].addmm_(weights, block)
            mixed["weights"] += weights.double().sum(1)
        totals.add(row, block)

    sums = {**totals.tensors, **mixed}
    accumulate(source, rows, add, sums, checkpoint, "moments")
    found, moved = totals.moments(), totals.tensors["sum"] / len(source)
    mixtures = mixed["mixtures"].addr_(mixed["weights"].float(), moved.float(), alpha=-1)
    checkpoint.save(
        "moments", {"mean": found.mean, "variance": found.variance, "mixtures": mixtures}
    )
    return found, mixtures
