"""Noise of training and what must be predicted for it, by the scheduler of a pipeline.

Times are the scheduler's time steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor


class Discrete:
    """A schedule of noise levels, with noise, velocity or the clean latents as the target."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Random times, uniform over the schedule, on the generator's device."""
        high = int(self._scheduler.config.num_train_timesteps)
        return torch.randint(high, tuple(shape), generator=generator, device=generator.device)

    def add(self, latents: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents, and what the denoiser must predict for them, as the scheduler has it."""
        noisy = self._scheduler.add_noise(latents, noise, times)
        if self._scheduler.config.prediction_type == "epsilon":
            return noisy, noise
        if self._scheduler.config.prediction_type == "v_prediction":
            return noisy, self._scheduler.get_velocity(latents, noise, times)
        return noisy, latents


class Flow:
    """Flow matching (Lipman et al. 2023): the target is noise minus clean.

    Latents at time t = 1000 s are (1 - s) times the clean ones plus s times the noise.

    Args:
        scheduler: of the pipeline.
        shift_of_size: the exponent by which times move toward noise for the size of the images,
            where the scheduler shifts so.
    """

    def __init__(self, scheduler: Any, shift_of_size: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._shift_of_size = shift_of_size
        self._longest = int(scheduler.config.num_train_timesteps)

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Logit-normal (Esser et al. 2024), then shifted as the scheduler does."""
        normal = torch.randn(tuple(shape), generator=generator, device=generator.device)
        levels = normal.sigmoid()
        config = self._scheduler.config
        if config.get("use_dynamic_shifting"):
            shifted: Tensor = self._scheduler.time_shift(self._shift_of_size(), 1.0, levels)
            return shifted * self._longest
        shift = float(config.get("flow_shift") or config.get("shift") or 1.0)
        return shift * levels / (1 + (shift - 1) * levels) * self._longest

    def add(self, latents: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """A straight line from clean latents to noise."""
        level = (times.float() / self._longest)[:, None, None, None]
        return ((1 - level) * latents + level * noise).to(latents.dtype), noise - latents


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is for models that were trained by flow matching."""
    config = scheduler.config
    return (
        "FlowMatch" in type(scheduler).__name__
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def ddim(scheduler: Any) -> DDIMScheduler:
    """DDIM with the noise schedule and the prediction type of another scheduler.

    Clipping is for pixels, not for latents.
    """
    made: DDIMScheduler = DDIMScheduler.from_config(
        scheduler.config, clip_sample=False, timestep_spacing="trailing"
    )
    return made
