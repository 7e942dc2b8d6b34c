"""Which family of base models an adapter is made for, told by names and widths of its modules."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lorasynth.adapter.layout import Layout

#: Outermost modules of FLUX's transformer; those of a U-Net have other names.
_TRANSFORMER = re.compile(
    r"(single_)?transformer_blocks\.|x_embedder|context_embedder|time_text_embed\.|norm_out\.|proj_out$"
)


@dataclass(frozen=True)
class Family:
    """A family of base models that share layer names and widths.

    Attributes:
        name: what people call it.
        base_version: kohya's `ss_base_model_version`.
        architecture: of a LoRA in the modelspec (https://github.com/Stability-AI/ModelSpec).
        text_encoders: that its pipelines have.
        network_module: kohya's script that trains such LoRAs.
    """

    name: str
    base_version: str
    architecture: str
    text_encoders: int = 1
    network_module: str = "networks.lora"


SD1 = Family("Stable Diffusion 1", "sd_v1", "stable-diffusion-v1/lora")
SD2 = Family("Stable Diffusion 2", "sd_v2", "stable-diffusion-v2-768-v/lora")
SDXL = Family("Stable Diffusion XL", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", 2)
FLUX = Family("FLUX.1", "flux1", "flux-1-dev/lora", 2, "networks.lora_flux")

#: Width of the text embedding that cross-attention reads -> family.
_BY_TEXT_WIDTH = {768: SD1, 1024: SD2, 2048: SDXL}


def is_transformer(modules: Iterable[str]) -> bool:
    """Whether the denoiser that some modules are of is a transformer, not a U-Net."""
    return any(_TRANSFORMER.match(module) for module in modules)


def family_of(layout: Layout) -> Family | None:
    """The family that an adapter of this layout is made for; None if it cannot be told.

    Text widths tell it; where no module reads the text, what only one family has does.
    """
    modules = layout.modules
    if is_transformer(modules):
        return FLUX
    widths = {
        slot.in_features
        for slot in layout.slots
        if slot.module.endswith(("attn2.to_k", "attn2.to_v"))
    }
    if len(widths) == 1:
        return _BY_TEXT_WIDTH.get(widths.pop())
    # Only SDXL stacks transformer blocks in one attention, and has a second text encoder.
    if any(re.search(r"attentions\.\d+\.transformer_blocks\.[1-9]", name) for name in modules):
        return SDXL
    if any(name.startswith(("text_encoder_2.", "add_embedding.")) for name in modules):
        return SDXL
    return None
