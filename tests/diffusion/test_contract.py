"""Every schedule and every parameterisation keeps the contract; one row each."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lorasynth.diffusion import PARAMETERISATIONS, SCHEDULES, Cosine, Schedule
from lorasynth.diffusion.contract import NOISE_RANGE

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


def test_the_cosine_schedule_is_diffusers_and_preserves_variance() -> None:
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha_bar = Cosine().alpha(t).square()
    # the last of their steps is cut short, so that some signal is left
    torch.testing.assert_close(
        alpha_bar[:-1].float(), theirs.alphas_cumprod[:-1], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(alpha_bar + Cosine().sigma(t).square(), torch.ones_like(t))
