"""The trained hypernetwork: conditions in, latents out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.config import from_dict, read_json, to_dict
from lorasynth.diffusion import PARAMETERISATIONS, SCHEDULES, Solver, sample
from lorasynth.errors import BundleError, LayoutError
from lorasynth.hypernet.contract import DENOISERS, State
from lorasynth.hypernet.normaliser import Normaliser
from lorasynth.randomness import torch_stream
from lorasynth.weights import CONFIG_FILE, load_module, save_module

WEIGHTS_FILE = "hypernet.safetensors"


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


class LatentDiffusion(nn.Module):
    """Denoiser, normalisers, schedule, parameterisation and sampler: all that sampling needs.

    Args:
        config: see there.
        latents: k, the width of a latent.
        condition_width: m, the width of a condition.

    Attributes:
        history: the figures of the training curve, one row per measurement.
    """

    def __init__(self, config: LatentDiffusionConfig, latents: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.latents = latents
        self.condition_width = condition_width
        kind = DENOISERS.get(config.denoiser)
        options = from_dict(kind.config_class, config.denoiser_options)
        self.denoiser = kind(options, latents, condition_width)
        self.latent_normaliser = Normaliser(latents)
        self.condition_normaliser = Normaliser(condition_width)
        self.schedule = SCHEDULES.get(config.schedule)()
        self.parameterisation = PARAMETERISATIONS.get(config.parameterisation)(self.schedule)
        self.history: list[dict[str, float]] = []

    def draw_noise(self, seed: int, names: Sequence[str | int]) -> Float[Tensor, "n k"]:
        """One row of noise per name, each from its own stream: a subject's row is always the same.

        Args:
            seed: of all streams.
            names: one per sample, such as subject names, or (subject, 0), (subject, 1) joined.
        """
        rows = [
            torch.randn(self.latents, generator=torch_stream(seed, "latent noise", name))
            for name in names
        ]
        return torch.stack(rows).to(self.latent_normaliser.mean)

    def sample(
        self,
        condition: Float[Tensor, "n m"] | None,
        noise: Float[Tensor, "n k"],
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Float[Tensor, "n k"]:
        """Draw latents, in the codec's units; rows do not influence one another.

        Args:
            condition: one per row; None to sample without.
            noise: as from `draw_noise`; equal noise and condition give equal latents.
            steps: solver steps; None for the config's.
            guidance: see the config; None for the config's.  Costs a second evaluation unless it
                is 1.

        Raises:
            LayoutError: condition or noise has another width or number of rows.
            ConfigError: more than 30 steps, or fewer than one.
        """
        self._check(condition, noise)
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

    def to_x0(
        self, x_t: Float[Tensor, "b k"], t: Float[Tensor, " b"], state: State
    ) -> Float[Tensor, "b k"]:
        """The expected clean point, in normalised units, under a prepared condition."""
        return self.parameterisation.to_x0(self.denoiser.denoise(x_t, t, state), x_t, t)

    def save(self, folder: Path | str, *, half: bool = False) -> None:
        """Write the model as a folder; `half` stores its matrices as fp16.

        Raises:
            LorasynthError: the folder cannot be written, or a value does not fit into fp16.
        """
        description = {
            "format": 1,
            "latents": self.latents,
            "condition_width": self.condition_width,
            "config": to_dict(self.config),
            "history": self.history,
        }
        save_module(folder, self, WEIGHTS_FILE, description, half=half)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> "LatentDiffusion":
        """Read what `save` wrote, ready to sample.

        Raises:
            BundleError: the folder is damaged or incomplete.
            ConfigError: its config cannot be read, or names a plug-in that is not installed.
        """
        folder = Path(folder)
        description = read_json(folder / CONFIG_FILE)
        try:
            config = from_dict(LatentDiffusionConfig, description["config"])
            widths = int(description["latents"]), int(description["condition_width"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{folder / CONFIG_FILE} must describe a hypernetwork, but lacks or garbles "
                f"{error}: train it again"
            ) from error
        model = load_module(lambda: cls(config, *widths), folder / WEIGHTS_FILE, device)
        model.history = description.get("history", [])
        return model

    def _check(self, condition: Float[Tensor, "n m"] | None, noise: Float[Tensor, "n k"]) -> None:
        if noise.shape[1] != self.latents:
            raise LayoutError(
                f"noise for this hypernetwork must have {self.latents} columns, but got "
                f"{noise.shape[1]}: use draw_noise"
            )
        if condition is not None and condition.shape != (len(noise), self.condition_width):
            raise LayoutError(
                f"a condition for this hypernetwork must have shape ({len(noise)}, "
                f"{self.condition_width}), but got {tuple(condition.shape)}: use the encoder that "
                "it was trained with, one row per sample"
            )
