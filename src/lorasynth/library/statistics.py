"""Mean, spread and norms of vectors in one pass, in float64 whatever the vectors are in."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorasynth.errors import LibraryError


@dataclass(frozen=True)
class Statistics:
    """Figures of N vectors of width D."""

    #: Mean of each number.
    mean: Float64[Tensor, " D"]
    #: Standard deviation of each number over the vectors (of the population: divided by N).
    std: Float64[Tensor, " D"]
    #: Euclidean norm of each vector.
    norms: Float64[Tensor, " n"]

    def __len__(self) -> int:
        """Number of vectors N."""
        return len(self.norms)


def streaming_statistics(batches: Iterable[Float[Tensor, "_ D"]]) -> Statistics:
    """Statistics of all rows of all batches, which are read once.

    Means and squared deviations of the batches are merged (Chan, Golub & LeVeque 1979), which is
    exact where sums of squares would cancel.

    Raises:
        LibraryError: there is no vector.
    """
    total, norms = 0, []
    mean = deviation = torch.zeros(())
    for batch in batches:
        rows = batch.double()
        norms.append(torch.linalg.vector_norm(rows, dim=1))
        if total == 0:
            mean = deviation = torch.zeros(rows.shape[1], dtype=torch.float64)
        batch_mean = rows.mean(dim=0)
        shift, joined = batch_mean - mean, total + len(rows)
        deviation = (
            deviation
            + (rows - batch_mean).square().sum(dim=0)
            + shift.square() * (total * len(rows) / joined)
        )
        mean = mean + shift * (len(rows) / joined)
        total = joined
    if total == 0:
        raise LibraryError("statistics need at least one vector, but there is none")
    return Statistics(mean, (deviation / total).sqrt(), torch.cat(norms))
