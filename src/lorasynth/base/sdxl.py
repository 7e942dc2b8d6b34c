"""Stable Diffusion XL: a U-Net, two CLIP text encoders, and the image's size as a condition."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import override

from lorasynth.base.contract import BASE_MODELS
from lorasynth.base.stable_diffusion import StableDiffusion
from lorasynth.base.texts import Texts


@BASE_MODELS.register("StableDiffusionXLPipeline")
class StableDiffusionXL(StableDiffusion):
    """Its U-Net reads both encoders' last but one layers, and the second's summary."""

    pipeline_class = StableDiffusionXLPipeline
    text_parts: ClassVar[dict[str, str]] = {
        "tokenizer": "text_encoder",
        "tokenizer_2": "text_encoder_2",
    }
    left_out: ClassVar[dict[str, Any]] = {"add_watermarker": False}

    @override
    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Texts:
        hidden = []
        for tokenizer, part in self.text_parts.items():
            tokens = self._tokens(tokenizer, prompts)
            output = self.text_encoders[part](tokens, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        summary: Tensor = output.text_embeds
        return Texts(
            {
                "encoder_hidden_states": torch.cat(hidden, dim=-1).to(self.dtype),
                "text_embeds": summary.to(self.dtype),
            }
        )

    @override
    def empty_prompts(self, count: int) -> Texts:
        empty = super().empty_prompts(count)
        zeros = self.pipeline.config.force_zeros_for_empty_prompt
        return empty.map(torch.zeros_like) if zeros else empty

    @override
    def denoise(
        self, noisy: Float[Tensor, "b c i j"], times: Int64[Tensor, " b"], texts: Texts
    ) -> Float[Tensor, "b c i j"]:
        # Height and width before cropping, where it was cropped, height and width after.
        side = self.image_size
        sizes = torch.tensor([side, side, 0, 0, side, side], device=noisy.device)
        prediction: Tensor = self.denoiser(
            noisy,
            times,
            texts.parts["encoder_hidden_states"],
            added_cond_kwargs={
                "text_embeds": texts.parts["text_embeds"],
                "time_ids": sizes.to(noisy.dtype).expand(len(noisy), -1),
            },
        ).sample
        return prediction
