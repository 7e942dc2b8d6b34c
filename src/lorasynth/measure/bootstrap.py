"""Intervals: bootstrap over subjects, paired across methods."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.randomness import torch_stream

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with the 2.5th and 97.5th percentiles of its bootstrap distribution."""

    mean: float
    lo: float
    hi: float


def bootstrap(values: Float[Tensor, " n"], seed: int = 0) -> Interval:
    """The interval of a mean over subjects.

    The resamples depend only on n and the seed, so methods measured on the same subjects are
    resampled alike, and the interval of a difference is that of the per-subject differences.
    """
    n = len(values)
    rows = torch.randint(n, (RESAMPLES, n), generator=torch_stream(seed, "bootstrap", n))
    means = values.double()[rows].mean(dim=1)
    lo, hi = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(mean=values.double().mean().item(), lo=lo, hi=hi)
