import pytest
import torch

from lorasynth.core.randomness import torch_stream
from lorasynth.evaluation.calibration import calibration


def normal(*shape: int, name: str) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_stream(0, name), dtype=torch.float64)


def test_samples_of_the_truths_own_distribution_are_calibrated() -> None:
    found = calibration(normal(200, 300, 4, name="samples"), normal(300, 4, name="truth"))
    assert found.spread_over_error == pytest.approx(1, abs=0.05)
    assert found.coverage_50 == pytest.approx(0.5, abs=0.03)
    assert found.coverage_90 == pytest.approx(0.9, abs=0.03)


def test_the_energy_score_is_least_at_the_right_spread() -> None:
    samples, truth = normal(100, 300, 4, name="samples"), normal(300, 4, name="truth")
    right = calibration(samples, truth).energy_score
    for factor in (0.0, 0.4, 2.0):
        assert calibration(factor * samples, truth).energy_score > right


def test_few_samples_measure_the_same_spread() -> None:
    samples, truth = normal(4, 3000, 4, name="samples"), normal(3000, 4, name="truth")
    assert calibration(samples, truth).spread_over_error == pytest.approx(1, abs=0.05)


def test_a_single_forecast_has_its_distance_and_no_spread() -> None:
    truth = normal(50, 3, name="truth")
    found = calibration(truth[None] + torch.tensor([2.0, 3.0, 6.0]).double(), truth)
    assert found.energy_score == pytest.approx(7)
    assert (found.spread_over_error, found.coverage_50, found.coverage_90) == (0, 0, 0)
