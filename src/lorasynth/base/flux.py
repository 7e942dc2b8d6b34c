"""FLUX.1: a transformer on patches of latents, trained by flow matching.

Times are noise levels: latents at time t are (1 - t) times the clean ones plus t times the noise,
and the transformer predicts noise minus clean (Lipman et al. 2023, Esser et al. 2024).
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lorasynth.base.contract import BASE_MODELS, BaseModel, Guided
from lorasynth.base.texts import Texts

#: What a model that was distilled with guidance is told in training: the weight at which guidance
#: does nothing, so that an adapter learns the images as they are.
_TRAINING_GUIDANCE = 1.0


@BASE_MODELS.register("FluxPipeline")
class Flux(BaseModel):
    """A transformer that reads T5's tokens and CLIP's summary; images are made by Euler steps."""

    pipeline_class = FluxPipeline
    denoiser_part = "transformer"
    text_parts: ClassVar[dict[str, str]] = {
        "tokenizer": "text_encoder",
        "tokenizer_2": "text_encoder_2",
    }
    patch = 2

    def __init__(self, pipeline: Any, name: str, image_size: int | None = None) -> None:
        super().__init__(pipeline, name, image_size)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)

    @override
    def own_image_size(self) -> int:
        return int(self.vae.config.sample_size)

    @override
    def _latent_channels(self) -> int:
        return int(self.denoiser.config.in_channels) // self.patch**2

    @override
    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Texts:
        clip, t5 = (self._read(*pair, prompts) for pair in self.text_parts.items())
        return Texts(
            {
                "encoder_hidden_states": t5.last_hidden_state.to(self.dtype),
                "pooled_projections": clip.pooler_output.to(self.dtype),
            }
        )

    def _read(self, tokenizer: str, encoder: str, prompts: Sequence[str]) -> Any:
        return self.text_encoders[encoder](self._tokens(tokenizer, prompts))

    @override
    def draw_times(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "..."]:
        """Logit-normal (Esser et al. 2024), then shifted for the size of the images."""
        normal = torch.randn(tuple(shape), generator=generator, device=generator.device)
        times = normal.sigmoid()
        if self.scheduler.config.use_dynamic_shifting:
            shifted: Tensor = self.scheduler.time_shift(self._shift_of_size(), 1.0, times)
            return shifted
        shift = float(self.scheduler.shift)
        return shift * times / (1 + (shift - 1) * times)

    def _shift_of_size(self) -> float:
        """How far times move toward noise; large images need more of it to be drowned."""
        tokens = (self.latent_shape[1] // self.patch) ** 2
        config = self.scheduler.config
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shift: float = calculate_shift(tokens, *(config[name] for name in names))
        return shift

    @override
    def add_noise(
        self,
        latents: Float[Tensor, "b c i j"],
        noise: Float[Tensor, "b c i j"],
        times: Float[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        level = times.float()[:, None, None, None]
        return ((1 - level) * latents + level * noise).to(latents.dtype), noise - latents

    @override
    def denoise(
        self, noisy: Float[Tensor, "b c i j"], times: Float[Tensor, " b"], texts: Texts
    ) -> Float[Tensor, "b c i j"]:
        return self._velocity(noisy, times, texts, _TRAINING_GUIDANCE)

    def _velocity(
        self,
        noisy: Float[Tensor, "b c i j"],
        times: Float[Tensor, " b"],
        texts: Texts,
        guidance: float,
    ) -> Float[Tensor, "b c i j"]:
        told = times.new_full((len(noisy),), guidance, dtype=torch.float32)
        tokens = texts.parts["encoder_hidden_states"].shape[1]
        predicted = self.denoiser(
            hidden_states=self.pack(noisy),
            timestep=times,
            guidance=told if self.denoiser.config.guidance_embeds else None,
            img_ids=self._places(noisy),
            txt_ids=noisy.new_zeros(tokens, 3),
            **texts.parts,
        ).sample
        return self._unpack(predicted, noisy.shape[2] // self.patch)

    def pack(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b tokens width"]:
        """Each patch of latents as one token, row by row."""
        b, c, i, j = latents.shape
        p = self.patch
        patches = latents.reshape(b, c, i // p, p, j // p, p)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)

    def _unpack(
        self, tokens: Float[Tensor, "b tokens width"], rows: int
    ) -> Float[Tensor, "b c i j"]:
        """The inverse of `pack`."""
        b, p = len(tokens), self.patch
        patches = tokens.reshape(b, rows, -1, tokens.shape[2] // p**2, p, p)
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def _places(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "tokens 3"]:
        """Row and column of each token; the first number is unused."""
        rows, columns = (latents.new_tensor(range(n // self.patch)) for n in latents.shape[2:])
        grid = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1)

    @override
    def schedule(self, steps: int) -> Iterator[Float[Tensor, ""]]:
        levels = np.linspace(1.0, 1 / steps, steps)
        self.scheduler.set_timesteps(sigmas=levels, device=self.device, mu=self._shift_of_size())
        self.scheduler.set_begin_index(0)
        yield from self.scheduler.sigmas[:-1]

    @override
    def guided(self, texts: Texts, count: int, guidance: float) -> Guided:
        """What the model was distilled to do; one that was not told a weight needs no guidance."""
        return lambda latents, time: self._velocity(
            latents, time.expand(len(latents)), texts, guidance
        )
