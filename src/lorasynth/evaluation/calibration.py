"""Is a forecast's spread the size of its error?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well samples forecast truths.

    Attributes:
        energy_score: E|X - y| - E|X - X'| / 2, mean over truths (Gneiting & Raftery 2007,
            eq. 22); least where the samples come from the truth's own distribution.  For a single
            forecast it is the distance.
        spread_over_error: root of the samples' mean variance, over the root mean square error of
            their mean; 1 where calibrated, 0 for a single forecast.
        coverage_50: share of single numbers that lie between the samples' quartiles.
        coverage_90: the same for the 5th and 95th percentile.
    """

    energy_score: float
    spread_over_error: float
    coverage_50: float
    coverage_90: float


def calibration(samples: Float[Tensor, "s n k"], truth: Float[Tensor, "n k"]) -> Calibration:
    """Compare s samples for each of n truths of k numbers."""
    samples, truth = samples.double(), truth.double()
    s = len(samples)
    error = (samples - truth).norm(dim=2).mean(0)
    apart = torch.cdist(samples.transpose(0, 1), samples.transpose(0, 1)).sum((1, 2))
    apart = apart / max(s * (s - 1), 1)
    # the variance of few samples is unbiased; their mean errs by a share of it more
    variance = samples.var(0, correction=1).mean() if s > 1 else torch.zeros(())
    missed = (samples.mean(0) - truth).square().mean() - variance / s
    return Calibration(
        energy_score=float((error - apart / 2).mean()),
        spread_over_error=float((variance / missed.clamp(min=1e-30)).sqrt()),
        coverage_50=_coverage(samples, truth, 0.5),
        coverage_90=_coverage(samples, truth, 0.9),
    )


def _coverage(samples: Float[Tensor, "s n k"], truth: Float[Tensor, "n k"], share: float) -> float:
    ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=samples.dtype)
    low, high = samples.quantile(ends, dim=0)
    return float(((low <= truth) & (truth <= high)).double().mean())
