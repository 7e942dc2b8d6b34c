"""The trained diffusion hypernetwork: denoises latents under a condition."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lorasynth.config import from_dict
from lorasynth.diffusion import PARAMETERISATIONS, SCHEDULES, Solver, sample
from lorasynth.hypernet.contract import DENOISERS, State
from lorasynth.hypernet.hypernetwork import HYPERNETWORKS, Hypernetwork
from lorasynth.hypernet.normaliser import Normaliser


@dataclass(frozen=True, kw_only=True)
class LatentDiffusionConfig:
    """What a `LatentDiffusion` is made of, and how it samples unless told otherwise.

    Attributes:
        denoiser: name of the denoiser.
        denoiser_options: options of that denoiser's config, its modulation among them.
        schedule: name of the noise schedule.
        parameterisation: what the denoiser predicts: `v`, `x0` or `epsilon`.
        solver: `dpm2m` or `ddim`.
        steps: solver steps, at most 30.
        guidance: classifier-free guidance (Ho & Salimans 2022); 1 for the plain condition, above
            it to exaggerate what the condition changes, 0 to ignore it.
    """

    denoiser: str = "mlp"
    denoiser_options: dict[str, Any] = field(default_factory=dict)
    schedule: str = "cosine"
    parameterisation: str = "v"
    solver: Solver = "dpm2m"
    steps: int = 25
    guidance: float = 1.0


@HYPERNETWORKS.register("diffusion")
class LatentDiffusion(Hypernetwork):
    """Denoiser, normalisers, schedule, parameterisation and sampler: all that sampling needs.

    Guidance costs a second evaluation of the denoiser unless it is 1 or 0.
    """

    config_class = LatentDiffusionConfig

    def __init__(self, config: LatentDiffusionConfig, latents: int, condition_width: int) -> None:
        super().__init__(config, latents, condition_width)
        kind = DENOISERS.get(config.denoiser)
        options = from_dict(kind.config_class, config.denoiser_options)
        self.denoiser = kind(options, latents, condition_width)
        self.latent_normaliser = Normaliser(latents)
        self.condition_normaliser = Normaliser(condition_width)
        self.schedule = SCHEDULES.get(config.schedule)()
        self.parameterisation = PARAMETERISATIONS.get(config.parameterisation)(self.schedule)

    @override
    def _sample(
        self,
        condition: Float[Tensor, "n m"] | None,
        noise: Float[Tensor, "n k"],
        steps: int | None,
        guidance: float | None,
    ) -> Float[Tensor, "n k"]:
        guidance = self.config.guidance if guidance is None else guidance
        steps = self.config.steps if steps is None else steps
        if condition is not None:
            condition = self.condition_normaliser(condition)
        null = self.denoiser.fill(None, len(noise))
        if condition is None or guidance == 0:
            conditions, weights = [null], [1.0]
        elif guidance == 1:
            conditions, weights = [condition], [1.0]
        else:
            conditions, weights = [condition, null], [guidance, 1 - guidance]
        state = self.denoiser.prepare(torch.cat(conditions))

        def denoise(x_t: Float[Tensor, "n k"], t: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
            copies = len(weights)
            clean = self.to_x0(x_t.repeat(copies, 1), t.repeat(copies), state).chunk(copies)
            return torch.stack([w * x for w, x in zip(weights, clean, strict=True)]).sum(0)

        clean = sample(denoise, noise, self.schedule, steps, self.config.solver)
        return self.latent_normaliser.inverse(clean)

    def clean(
        self,
        latents: Float[Tensor, "n k"],
        condition: Float[Tensor, "n m"] | None,
        noise: Float[Tensor, "n k"],
        level: float,
    ) -> Float[Tensor, "n k"]:
        """What one evaluation makes of latents to which noise was added.

        Args:
            latents: in the codec's units.
            condition: one per row; None to do without.
            noise: standard normal.
            level: sigma/alpha of the noise, in normalised units.
        """
        x0 = self.latent_normaliser(latents)
        if condition is not None:
            condition = self.condition_normaliser(condition)
        state = self.denoiser.prepare(self.denoiser.fill(condition, len(x0)))
        time = self.schedule.time(-2 * torch.tensor(level, dtype=torch.float64).log())
        t = time.to(x0).expand(len(x0))
        found = self.to_x0(self.schedule.mix(x0, noise, t), t, state)
        return self.latent_normaliser.inverse(found)

    def to_x0(
        self, x_t: Float[Tensor, "b k"], t: Float[Tensor, " b"], state: State
    ) -> Float[Tensor, "b k"]:
        """The expected clean point, in normalised units, under a prepared condition."""
        return self.parameterisation.to_x0(self.denoiser.denoise(x_t, t, state), x_t, t)
