"""Sampling: deterministic solvers of the probability-flow equation, at most 30 evaluations.

Written here rather than taken from diffusers, whose schedulers assume a variance-preserving chain
of discrete steps and keep state between calls.  These work for any `Schedule`, are pure functions
(so they can be differentiated through and called from several threads), and step evenly in
log-SNR, which is where the second-order solver is best: a known Gaussian comes back with its
standard deviation within 1 % from 25 steps (DDIM: 9 % too narrow).  The tests hold both against
diffusers' DDIM and DPM-Solver++ on the same steps.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.core.errors import ConfigError
from lorasynth.diffusion.contract import NOISE_RANGE, Denoise, Schedule

Solver = Literal["ddim", "dpm2m"]
MAX_STEPS = 30


def sample(
    denoise: Denoise,
    noise: Float[Tensor, "b *d"],
    schedule: Schedule,
    steps: int = 25,
    solver: Solver = "dpm2m",
) -> Float[Tensor, "b *d"]:
    """Turn noise into samples with `steps` evaluations of the denoiser.

    Both solvers integrate x' = f over the half log-SNR lambda = log(alpha/sigma) by
    x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) D with h = lambda_s - lambda_t.
    `ddim` takes D = x_0(x_t) (Song et al. 2021, eq. 12 without noise); `dpm2m` extrapolates D from
    the last two x_0 (DPM-Solver++ 2M; Lu et al. 2022, algorithm 2).  The last evaluation's x_0 is
    the result: the step to zero noise is first order and exact.

    Args:
        denoise: maps (x_t, t) to the expected x_0; guidance, if any, happens inside it.  It is
            called once at each of `solver_times`, in their order.
        noise: x at t = 1, one independent draw per row; rows do not influence one another.
        schedule: the process that the denoiser was trained on.
        steps: evaluations of the denoiser, from 1 to 30.
        solver: `dpm2m` (default, second order) or `ddim`.

    Raises:
        ConfigError: `steps` or `solver` is out of range.
    """
    if solver not in get_args(Solver):
        known = ", ".join(get_args(Solver))
        raise ConfigError(f"a solver must be one of {known}, but got {solver!r}: choose one")
    times, alphas, sigmas, lambdas = _grid(schedule, steps)
    x = noise * sigmas[0]
    clean = denoise(x, _fill(times[0], x))
    previous = clean
    for i in range(steps - 1):
        h = lambdas[i + 1] - lambdas[i]
        direction = clean
        if solver == "dpm2m" and i > 0:
            ratio = h / (lambdas[i] - lambdas[i - 1])
            direction = clean + 0.5 * ratio * (clean - previous)
        x = sigmas[i + 1] / sigmas[i] * x - alphas[i + 1] * math.expm1(-h) * direction
        previous, clean = clean, denoise(x, _fill(times[i + 1], x))
    return clean


def solver_times(schedule: Schedule, steps: int) -> list[float]:
    """The times at which `sample` evaluates the denoiser, from noise to data.

    Raises:
        ConfigError: `steps` is out of range.
    """
    return _grid(schedule, steps)[0]


def _grid(
    schedule: Schedule, steps: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Times, alphas, sigmas and half log-SNRs, evenly spaced in the last, from noise to data."""
    if not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"sampling takes from 1 to {MAX_STEPS} steps, but got {steps}")
    low, high = (-torch.tensor(level, dtype=torch.float64).log() for level in NOISE_RANGE[::-1])
    lambdas = low + (high - low) * torch.linspace(0, 1, steps, dtype=torch.float64)
    times = schedule.time(2 * lambdas)
    alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
    return times.tolist(), alphas.tolist(), sigmas.tolist(), lambdas.tolist()


def _fill(time: float, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    return x.new_full(x.shape[:1], time)
