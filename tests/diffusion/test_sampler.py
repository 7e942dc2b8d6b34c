import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from lorasynth.core.errors import ConfigError
from lorasynth.diffusion import Cosine, Denoise, Schedule, sample
from lorasynth.diffusion.contract import over


def gaussian_denoiser(schedule: Schedule, mean: float, std: float) -> Denoise:
    """E[x_0 | x_t] for x_0 ~ N(mean, std^2)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = over(schedule.alpha(t), x), over(schedule.sigma(t), x)
        gain = std**2 * alpha / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return denoise


@pytest.mark.parametrize("std", [0.1, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("steps", [20, 25, 30])
def test_a_known_gaussian_comes_back_with_its_moments(std: float, steps: int) -> None:
    denoise = gaussian_denoiser(Cosine(), 1.0, std)
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()
    noise = (noise - noise.mean()) / noise.std()
    found = sample(denoise, noise, Cosine(), steps)
    assert float(found.std()) == pytest.approx(std, rel=0.015)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.025)


def test_ddim_under_disperses_as_documented() -> None:
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()
    noise = noise / noise.std()
    denoise = gaussian_denoiser(Cosine(), 0.0, 0.3)
    found = float(sample(denoise, noise, Cosine(), 25, "ddim").std())
    assert 0.26 < found < 0.285


def test_more_steps_come_nearer_to_the_exact_flow() -> None:
    noise = torch.linspace(-2, 2, 9).double()[:, None]
    denoise = gaussian_denoiser(Cosine(), 0.0, 0.5)
    for solver in ("ddim", "dpm2m"):
        errors = [
            float((sample(denoise, noise, Cosine(), steps, solver) - 0.5 * noise).abs().max())
            for steps in (5, 10, 30)
        ]
        assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("solver", ["ddim", "dpm2m"])
def test_agrees_with_diffusers_on_the_same_steps(solver: str) -> None:
    """A schedule with the solver's own grid as its discrete steps makes both walk the same way."""
    steps, schedule = 12, Cosine()
    levels = torch.logspace(-2, 2, steps, dtype=torch.float64)
    alpha_bar = torch.sigmoid(-2 * levels.log())
    betas = 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    kind = {"ddim": DDIMScheduler, "dpm2m": DPMSolverMultistepScheduler}[solver]
    options = {
        "ddim": {"clip_sample": False, "set_alpha_to_one": True},
        "dpm2m": {"solver_order": 2, "final_sigmas_type": "zero", "lower_order_final": True},
    }[solver]
    theirs = kind(
        num_train_timesteps=steps,
        trained_betas=betas.tolist(),
        prediction_type="sample",
        timestep_spacing="trailing",
        **options,
    )
    theirs.set_timesteps(steps)
    denoise = gaussian_denoiser(schedule, 0.4, 0.7)
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double()
    x = noise * schedule.sigma(schedule.time(-2 * levels[-1:].log()))
    times = schedule.time(-2 * levels.log())
    for step in theirs.timesteps:
        t = times[int(step)].expand(len(x))
        x = theirs.step(denoise(x, t), int(step), x).prev_sample
    torch.testing.assert_close(
        sample(denoise, noise, schedule, steps, solver), x.double(), atol=2e-4, rtol=0
    )


def test_rows_do_not_influence_one_another() -> None:
    noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    denoise = gaussian_denoiser(Cosine(), 0.4, 0.7)
    whole = sample(denoise, noise, Cosine(), 8)
    torch.testing.assert_close(whole[3:5], sample(denoise, noise[3:5], Cosine(), 8))


def test_it_can_be_differentiated_through() -> None:
    noise = torch.randn(2, 3, requires_grad=True)
    sample(gaussian_denoiser(Cosine(), 0.0, 0.5), noise, Cosine(), 4).sum().backward()
    assert noise.grad is not None
    assert (noise.grad > 0.1).all()


@pytest.mark.parametrize("steps", [0, 31])
def test_the_number_of_steps_is_bounded(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"1 to 30 steps, but got {steps}"):
        sample(gaussian_denoiser(Cosine(), 0.0, 1.0), torch.randn(1, 1), Cosine(), steps)


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises((ConfigError, TypeError)):
        sample(gaussian_denoiser(Cosine(), 0.0, 1.0), torch.randn(1, 1), Cosine(), 3, "euler")  # type: ignore[arg-type]
