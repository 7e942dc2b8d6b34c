import pytest
import torch

from lorasynth.core.randomness import torch_stream
from lorasynth.evaluation.bootstrap import bootstrap, bootstrap_ratio, bootstrap_seeds


@pytest.mark.parametrize("n", [30, 200])
def test_the_interval_is_that_of_the_standard_error(n: int) -> None:
    values = torch.randn(n, generator=torch_stream(0, n)) * 0.3 + 0.5
    interval = bootstrap(values)
    error = values.std(correction=0).item() / n**0.5  # of resampling with replacement
    assert interval.mean == pytest.approx(values.mean().item(), abs=1e-6)
    assert interval.hi - interval.mean == pytest.approx(1.96 * error, rel=0.06)
    assert interval.mean - interval.lo == pytest.approx(1.96 * error, rel=0.06)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for i in range(100):
        interval = bootstrap(torch.rand(40, generator=torch_stream(1, i)), seed=i)
        covered += interval.lo <= 0.5 <= interval.hi
    assert 88 <= covered <= 99


def test_methods_are_resampled_alike() -> None:
    """So the interval of a difference is narrow where two methods rise and fall together."""
    subjects = torch.randn(100, generator=torch_stream(0, "subjects"))
    noise = 0.01 * torch.randn(100, generator=torch_stream(0, "noise"))
    first, second, difference = map(bootstrap, (subjects, subjects + 1 + noise, 1 + noise))
    # The two means move together in every resample, so the ends of their intervals do too.
    assert second.lo - first.lo == pytest.approx(1, abs=0.01)
    assert second.hi - first.hi == pytest.approx(1, abs=0.01)
    assert difference.hi - difference.lo < 0.05 * (first.hi - first.lo)
    shifted = bootstrap(2 * subjects - 3)
    for end in ("mean", "lo", "hi"):
        assert getattr(shifted, end) == pytest.approx(2 * getattr(first, end) - 3, abs=1e-5)


def test_a_ratio_is_of_the_means_of_the_same_resamples() -> None:
    whole = 1 + torch.rand(60, generator=torch_stream(0, "whole"))
    half = bootstrap_ratio(whole / 2, whole)
    assert (half.lo, half.mean, half.hi) == pytest.approx((0.5, 0.5, 0.5))
    other = torch.rand(60, generator=torch_stream(0, "other"))
    ratio = bootstrap_ratio(other, whole)
    assert ratio.mean == pytest.approx((other.mean() / whole.mean()).item())
    assert ratio.lo < ratio.mean < ratio.hi


def test_it_depends_on_the_seed_alone() -> None:
    values = torch.randn(50, generator=torch_stream(0, "values"))
    assert bootstrap(values) == bootstrap(values, seed=0)
    assert bootstrap(values) != bootstrap(values, seed=1)


def test_values_without_spread_have_no_interval() -> None:
    interval = bootstrap(torch.full((7,), 0.25))
    assert (interval.lo, interval.mean, interval.hi) == (0.25, 0.25, 0.25)


def test_seeds_are_resampled_too() -> None:
    """So that a spread over seeds widens the interval, though subjects agree."""
    subjects = torch.randn(50, generator=torch_stream(0, "subjects"))
    one = bootstrap_seeds(subjects[None])
    assert one == bootstrap(subjects)
    alike = bootstrap_seeds(subjects.expand(3, -1))
    assert (alike.lo, alike.hi) == pytest.approx((one.lo, one.hi))
    apart = bootstrap_seeds(subjects + torch.tensor([[-1.0], [0.0], [1.0]]))
    assert apart.mean == pytest.approx(one.mean)
    assert apart.hi - apart.lo > 2 * (one.hi - one.lo)
