"""Every schedule and every parameterisation keeps the contract; one row each."""

import pytest
import torch
from torch import Tensor

from lorasynth.diffusion import PARAMETERISATIONS, SCHEDULES, Schedule
from lorasynth.diffusion.contract import NOISE_RANGE, over

schedules = pytest.mark.parametrize(
    "schedule", [SCHEDULES.get(name)() for name in SCHEDULES.names()], ids=type
)
parameterisations = pytest.mark.parametrize("name", PARAMETERISATIONS.names())


def _problem(schedule: Schedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 5, generator=generator, dtype=torch.float64)
    t = schedule.times(torch.linspace(0, 1, 64, dtype=torch.float64))
    return x0, eps, t, schedule.mix(x0, eps, t)


@schedules
def test_a_schedule_runs_from_data_to_noise(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    ends = torch.stack([alpha[0], sigma[0], alpha[-1], sigma[-1]])
    torch.testing.assert_close(ends, torch.tensor([1.0, 0, 0, 1]).double(), atol=1e-7, rtol=0)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


@schedules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_inverts_log_snr(schedule: Schedule, dtype: torch.dtype) -> None:
    levels = torch.logspace(-2, 2, 41, dtype=dtype)
    found = schedule.log_snr(schedule.time(-2 * levels.log()))
    accuracy = 1e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, -2 * levels.log(), atol=accuracy, rtol=0)


@schedules
def test_training_times_span_the_noise_range(schedule: Schedule) -> None:
    ends = schedule.times(torch.tensor([0.0, 1.0], dtype=torch.float64))
    level = schedule.sigma(ends) / schedule.alpha(ends)
    torch.testing.assert_close(level, torch.tensor(NOISE_RANGE).double(), rtol=1e-6, atol=0)


@schedules
@parameterisations
def test_the_target_gives_back_x0(schedule: Schedule, name: str) -> None:
    x0, eps, t, x_t = _problem(schedule)
    parameterisation = PARAMETERISATIONS.get(name)(schedule)
    found = parameterisation.to_x0(parameterisation.target(x0, eps, t), x_t, t)
    torch.testing.assert_close(found, x0, atol=1e-9, rtol=0)


@schedules
@parameterisations
def test_gain_is_the_size_of_an_error_in_x0(schedule: Schedule, name: str) -> None:
    x0, eps, t, x_t = _problem(schedule)
    parameterisation = PARAMETERISATIONS.get(name)(schedule)
    target = parameterisation.target(x0, eps, t)
    wrong_by_one = parameterisation.to_x0(target + over(parameterisation.gain(t), target), x_t, t)
    torch.testing.assert_close((wrong_by_one - x0).abs(), torch.ones_like(x0), atol=1e-9, rtol=0)


@schedules
@parameterisations
def test_min_snr_weighs_all_parameterisations_alike_in_x0(schedule: Schedule, name: str) -> None:
    _, _, t, _ = _problem(schedule)
    parameterisation = PARAMETERISATIONS.get(name)(schedule)
    in_x0 = parameterisation.loss_weight(t, min_snr=5.0) * parameterisation.gain(t).square()
    torch.testing.assert_close(in_x0, schedule.log_snr(t).exp().clamp(max=5))
    assert (parameterisation.loss_weight(t) == 1).all()
