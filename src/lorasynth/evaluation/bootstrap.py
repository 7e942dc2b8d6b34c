"""Intervals: bootstrap over subjects, paired across methods."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lorasynth.core.randomness import torch_stream

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with the 2.5th and 97.5th percentiles of its bootstrap distribution."""

    mean: float
    lo: float
    hi: float


def in_words(interval: Mapping[str, float]) -> str:
    """An interval, as JSON has it, for a table: its mean, and its ends in brackets."""
    return f"{interval['mean']:.3f} [{interval['lo']:.3f}, {interval['hi']:.3f}]"


def bootstrap(values: Float[Tensor, " n"], seed: int = 0) -> Interval:
    """The interval of a mean over subjects.

    The resamples depend only on n and the seed, so methods measured on the same subjects are
    resampled alike, and the interval of a difference is that of the per-subject differences.
    """
    return _interval(values.double().mean(), _resampled_means(values, seed))


def bootstrap_seeds(values: Float[Tensor, "seeds n"]) -> Interval:
    """The interval of a mean over seeds and subjects: both are drawn anew.

    With one seed it is that of `bootstrap`.  Few seeds show too little of their spread: of three
    the interval has 0.82 (the root of two thirds) of its due width, as far as seeds decide it.

    Args:
        values: the same subjects in each row.
    """
    seeds, n = values.shape
    if seeds == 1:
        return bootstrap(values[0])
    subjects = _rows(n)
    stream = torch_stream(0, "bootstrap seeds", seeds)
    drawn = torch.randint(seeds, (RESAMPLES, seeds), generator=stream)
    shares = torch.nn.functional.one_hot(drawn, seeds).double().mean(dim=1)
    means = torch.stack([row.double()[subjects].mean(dim=1) for row in values], dim=1)
    return _interval(values.double().mean(), (shares * means).sum(dim=1))


def bootstrap_ratio(values: Float[Tensor, " n"], whole: Float[Tensor, " n"]) -> Interval:
    """The interval of the ratio of two means over the same subjects, resampled together.

    Args:
        values: what is divided.
        whole: what it is divided by; its mean must not be 0, and resamples where it is are left
            out.
    """
    tops, bottoms = _resampled_means(values), _resampled_means(whole)
    defined = bottoms != 0
    ratios = tops[defined] / bottoms[defined]
    return _interval(values.double().mean() / whole.double().mean(), ratios)


def _resampled_means(values: Float[Tensor, " n"], seed: int = 0) -> Float[Tensor, " resamples"]:
    return values.double()[_rows(len(values), seed)].mean(dim=1)


def _rows(n: int, seed: int = 0) -> Int64[Tensor, "resamples n"]:
    """Which subjects each resample has."""
    return torch.randint(n, (RESAMPLES, n), generator=torch_stream(seed, "bootstrap", n))


def _interval(mean: Float[Tensor, ""], resampled: Float[Tensor, " resamples"]) -> Interval:
    lo, hi = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(mean=mean.item(), lo=lo, hi=hi)
