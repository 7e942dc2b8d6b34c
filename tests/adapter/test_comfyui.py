"""Every key of a kohya file is one that ComfyUI maps.

ComfyUI is not installed here.  What it maps was read in its source (`comfy/lora.py`,
`comfy/utils.py`, `comfy/weight_adapter/lora.py`, October 2025): a key is loaded only if what is
before its suffix is in a table made from the model's own names.

- U-Net: `lora_unet_` + the name of a layer in the model as published, or in diffusers.
- FLUX: `lora_unet_` + the name of a layer in the model as published.
- CLIP: six layers of each of 32 blocks, after `lora_te_text_model_encoder_layers_N_` or `lora_te1_`
  for the first encoder, `lora_te2_` for the second.
- Suffixes: `.lora_down.weight`, `.lora_up.weight`, `.alpha`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors import safe_open
from torch import nn

from lorasynth.adapter import Adapter, Factor, Kernel

SUFFIX = re.compile(r"\.(lora_down\.weight|lora_up\.weight|alpha)$")
TEXT = re.compile(
    r"lora_te[12]?_text_model_encoder_layers_([12]?\d|3[01])_"
    r"(mlp_fc[12]|self_attn_(q|k|v|out)_proj)$"
)


def published_unet(depths: list[int], outer_depths: list[int], middle: int) -> Iterator[str]:
    """Layers of Stable Diffusion's U-Net as published, two residual layers in each block.

    Args:
        depths: transformer blocks at each resolution on the way down, 0 for no attention.
        outer_depths: the same on the way up.
        middle: the same in the middle.
    """
    yield from ("time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "out.2")
    yield "input_blocks.0.0"
    number = 1
    for level, depth in enumerate(depths):
        for _ in range(2):
            yield from residual(f"input_blocks.{number}.0")
            yield from transformer(f"input_blocks.{number}.1", depth)
            number += 1
        if level + 1 < len(depths):
            yield f"input_blocks.{number}.0.op"
            number += 1
    for place in (0, 2):
        yield from residual(f"middle_block.{place}")
    yield from transformer("middle_block.1", middle)
    for level, depth in enumerate(outer_depths):
        for layer in range(3):
            block = f"output_blocks.{3 * level + layer}"
            yield from residual(f"{block}.0")
            yield from transformer(f"{block}.1", depth)
            if layer == 2 and level + 1 < len(outer_depths):
                yield f"{block}.{2 if depth else 1}.conv"


def residual(name: str) -> Iterator[str]:
    for part in ("in_layers.2", "emb_layers.1", "out_layers.3", "skip_connection"):
        yield f"{name}.{part}"


def transformer(name: str, depth: int) -> Iterator[str]:
    if not depth:
        return
    yield from (f"{name}.proj_in", f"{name}.proj_out")
    for k in range(depth):
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                yield f"{name}.transformer_blocks.{k}.{attention}.{part}"
        yield from (f"{name}.transformer_blocks.{k}.ff.net.{part}" for part in ("0.proj", "2"))


def published_flux() -> Iterator[str]:
    for i in range(19):
        for stream in ("img", "txt"):
            for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin"):
                yield f"double_blocks.{i}.{stream}_{part}"
    for i in range(38):
        yield from (f"single_blocks.{i}.{p}" for p in ("linear1", "linear2", "modulation.lin"))
    yield from ("img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1")
    for part in ("time_in", "vector_in", "guidance_in"):
        yield from (f"{part}.in_layer", f"{part}.out_layer")


def sd1() -> UNet2DConditionModel:
    return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)


def sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(guidance_embeds=True)


PUBLISHED = {
    sd1: lambda: published_unet([1, 1, 1, 0], [0, 1, 1, 1], 1),
    sdxl: lambda: published_unet([0, 2, 10], [10, 2, 0], 10),
    flux: published_flux,
}


def layers(network: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def text_layers(encoders: int) -> list[str]:
    names = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    prefixes = ("text_encoder", "text_encoder_2")[:encoders]
    return [
        f"{p}.text_model.encoder.layers.{n}.{x}" for p in prefixes for n in (0, 11) for x in names
    ]


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_a_kohya_file_has_only_keys_that_comfyui_maps(architecture, tmp_path: Path) -> None:
    with torch.device("meta"):
        network = architecture()
    factors: dict[str, Factor] = {}
    kernels: dict[str, Kernel] = {}
    for name, layer in layers(network).items():
        width = layer.weight[0].numel()
        factors[name] = Factor(torch.ones(1, width), torch.ones(layer.weight.shape[0], 1))
        if isinstance(layer, nn.Conv2d):
            kernels[name] = (layer.kernel_size[0], layer.kernel_size[1])
    encoders = {sd1: 1, sdxl: 2, flux: 1}[architecture]
    factors |= {m: Factor(torch.ones(1, 768), torch.ones(768, 1)) for m in text_layers(encoders)}
    path = Adapter(factors, kernels=kernels).save(tmp_path / "all.safetensors", format="kohya")
    known = {f"lora_unet_{name.replace('.', '_')}" for name in PUBLISHED[architecture]()}
    if architecture is not flux:
        known |= {f"lora_unet_{name.replace('.', '_')}" for name in layers(network)}
    with safe_open(path, "pt") as file:
        keys = list(file.keys())
    assert len(keys) >= 3 * 12
    stems = {SUFFIX.sub("", key) for key in keys if SUFFIX.search(key)}
    assert len(keys) == 3 * len(stems), "each layer has a down, an up and an alpha"
    text = {stem for stem in stems if TEXT.match(stem)}
    assert len(text) == 12 * encoders
    assert stems - text <= known, sorted(stems - text - known)[:5]
    if architecture is flux:
        assert stems - text == known, "and every layer of FLUX is there"
