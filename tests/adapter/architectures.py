"""The true classes of all families at their true widths, of few blocks, without weights."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import diffusers
import torch
from torch import nn

from lorasynth.adapter import Adapter, Factor, Kernel

_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_HIDREAM = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 20,
    "caption_channels": [4096, 4096],
    "text_emb_dim": 2048,
    "num_routed_experts": 2,
    "num_activated_experts": 2,
}
_SD3 = {"num_layers": 3, "dual_attention_layers": (0,), "attention_head_dim": 64}
_SD3 |= {"num_attention_heads": 24, "caption_projection_dim": 1536}
_TWO = {"num_layers": 2}
_BOTH = {"num_layers": 2, "num_single_layers": 2}

#: Family -> class of the denoiser, its options, and the pipeline that loads files into it.
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "sd1": ("UNet2DConditionModel", {"cross_attention_dim": 768}, "StableDiffusionPipeline"),
    "sd2": ("UNet2DConditionModel", _SD2, "StableDiffusionPipeline"),
    "sdxl": ("UNet2DConditionModel", _SDXL, "StableDiffusionXLPipeline"),
    "sd3": ("SD3Transformer2DModel", _SD3, "StableDiffusion3Pipeline"),
    "flux1": ("FluxTransformer2DModel", {**_BOTH, "guidance_embeds": True}, "FluxPipeline"),
    "chroma": ("ChromaTransformer2DModel", _BOTH, "ChromaPipeline"),
    "flux2": ("Flux2Transformer2DModel", _BOTH, "Flux2Pipeline"),
    "z-image": ("ZImageTransformer2DModel", {"n_layers": 2}, "ZImagePipeline"),
    "lumina2": ("Lumina2Transformer2DModel", _TWO, "Lumina2Pipeline"),
    "qwen-image": ("QwenImageTransformer2DModel", _TWO, "QwenImagePipeline"),
    "wan": ("WanTransformer3DModel", _TWO, "WanPipeline"),
    "hidream": ("HiDreamImageTransformer2DModel", _HIDREAM, "HiDreamImagePipeline"),
    "pixart": (
        "PixArtTransformer2DModel",
        {**_TWO, "caption_channels": 4096, "sample_size": 128},
        "",
    ),
    "sana": ("SanaTransformer2DModel", _TWO, "SanaPipeline"),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        {"num_mmdit_layers": 2, "num_single_dit_layers": 2},
        "AuraFlowPipeline",
    ),
    "krea2": ("Krea2Transformer2DModel", _TWO, "Krea2Pipeline"),
    "ltx": ("LTXVideoTransformer3DModel", _TWO, "LTXPipeline"),
    "ideogram4": ("Ideogram4Transformer2DModel", _TWO, "Ideogram4Pipeline"),
}


@cache
def network(family: str) -> nn.Module:
    """The denoiser; its weights are memory that nothing ever touches."""
    kind, options, _ = ROWS[family]
    with torch.device("meta"):
        made: nn.Module = getattr(diffusers, kind)(**options)
    return made.half().to_empty(device="cpu").requires_grad_(False)


def layers(family: str) -> dict[str, nn.Module]:
    """The linear layers and convolutions of a denoiser."""
    kinds = nn.Linear | nn.Conv2d | nn.Conv3d
    return {n: m for n, m in network(family).named_modules() if isinstance(m, kinds)}


def adapter(
    family: str,
    wanted: Callable[[str], bool] = lambda _: True,
    rank: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Adapter:
    """A random adapter on the layers of a denoiser that are wanted."""
    stream = torch.Generator().manual_seed(seed)
    factors: dict[str, Factor] = {}
    kernels: dict[str, Kernel] = {}
    for name, layer in layers(family).items():
        if not wanted(name):
            continue
        width, out = layer.weight[0].numel(), layer.weight.shape[0]
        a = torch.randn(rank, width, generator=stream)
        factors[name] = Factor(a.to(dtype), torch.randn(out, rank, generator=stream).to(dtype))
        if not isinstance(layer, nn.Linear):
            kernels[name] = tuple(layer.kernel_size)
    return Adapter(factors, kernels=kernels)


def text_modules(component: str, kind: str = "clip") -> Iterable[str]:
    """Some layers of a text encoder."""
    if kind == "clip":
        inside = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
        return [f"{component}.text_model.encoder.layers.{n}.{x}" for n in (0, 1) for x in inside]
    return [f"{component}.encoder.block.{n}.layer.0.SelfAttention.q" for n in (0, 1)]
