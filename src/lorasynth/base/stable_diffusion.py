"""Stable Diffusion 1 and 2, and what is like them: a U-Net and one CLIP text encoder."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import override

from lorasynth.base.contract import BASE_MODELS, BaseModel, Guided
from lorasynth.base.texts import Texts, interleave, separate
from lorasynth.core.errors import ConfigError


@BASE_MODELS.register("StableDiffusionPipeline")
class StableDiffusion(BaseModel):
    """A U-Net with a discrete noise schedule; images are made by DDIM."""

    pipeline_class = StableDiffusionPipeline
    left_out: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    def __init__(self, pipeline: Any, name: str, image_size: int | None = None) -> None:
        super().__init__(pipeline, name, image_size)
        # Whatever sampler the pipeline came with, DDIM takes its noise schedule and prediction
        # type; clipping is for pixels, not for latents.
        self.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, timestep_spacing="trailing"
        )

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: `epsilon`, `v_prediction` or `sample`."""
        return str(self.scheduler.config.prediction_type)

    @override
    def own_image_size(self) -> int:
        return int(self.denoiser.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @override
    def _latent_channels(self) -> int:
        return int(self.denoiser.config.in_channels)

    @override
    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Texts:
        encoder = self.text_encoders["text_encoder"]
        embedded: Tensor = encoder(self._tokens("tokenizer", prompts))[0]
        return Texts({"encoder_hidden_states": embedded.to(self.dtype)})

    @override
    def draw_times(self, shape: Sequence[int], generator: torch.Generator) -> Int64[Tensor, "..."]:
        high = int(self.scheduler.config.num_train_timesteps)
        return torch.randint(high, tuple(shape), generator=generator, device=generator.device)

    @override
    def add_noise(
        self,
        latents: Float[Tensor, "b c i j"],
        noise: Float[Tensor, "b c i j"],
        times: Int64[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        noisy = self.scheduler.add_noise(latents, noise, times)
        if self.prediction_type == "epsilon":
            return noisy, noise
        if self.prediction_type == "v_prediction":
            return noisy, self.scheduler.get_velocity(latents, noise, times)
        return noisy, latents

    @override
    def denoise(
        self, noisy: Float[Tensor, "b c i j"], times: Int64[Tensor, " b"], texts: Texts
    ) -> Float[Tensor, "b c i j"]:
        prediction: Tensor = self.denoiser(noisy, times, **texts.parts).sample
        return prediction

    @override
    def schedule(self, steps: int) -> Iterator[Int64[Tensor, ""]]:
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise ConfigError(f"sampler steps must be from 1 to {most}, but are {steps}")
        self.scheduler.set_timesteps(steps, device=self.device)
        yield from self.scheduler.timesteps

    @override
    def guided(self, texts: Texts, count: int, guidance: float) -> Guided:
        """Classifier-free guidance (Ho & Salimans 2022)."""
        if guidance == 1:
            return lambda latents, time: self.denoise(latents, time.expand(len(latents)), texts)
        # An adapter may change the text encoder, so each has an empty prompt of its own.
        empty = self.empty_prompts(count)
        samples = len(texts) // count
        empty = empty.map(lambda part: part.repeat_interleave(samples, dim=0))
        both = texts.interleaved(empty, count)

        def predict(latents: Tensor, time: Tensor) -> Tensor:
            inputs = interleave(latents, latents, count)
            prediction = self.denoise(inputs, time.expand(len(inputs)), both)
            said, unsaid = separate(prediction, count)
            return unsaid + guidance * (said - unsaid)

        return predict
