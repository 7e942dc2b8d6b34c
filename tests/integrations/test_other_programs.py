"""Keys that docs/comfyui.md says other programs map are those of the files that `auto` writes."""

import pytest
import torch

from lorasynth.adapter import Adapter, AdapterMetadata, Factor

#: Family as headers state it, a module with its widths, and what its keys begin with.
CASES = {
    "Stable Diffusion 1": (
        "stable-diffusion-v1/lora",
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 768, 320),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.",
    ),
    "Stable Diffusion XL": (
        "stable-diffusion-xl-v1-base/lora",
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 2048, 640),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.",
    ),
    "FLUX.1": (
        "flux-1-dev/lora",
        ("transformer_blocks.0.attn.to_out.0", 3072, 3072),
        "lora_unet_double_blocks_0_img_attn_proj.",
    ),
    "FLUX.2": (
        "flux-2/lora",
        ("transformer_blocks.0.ff.linear_in", 3072, 18432),
        "diffusion_model.double_blocks.0.img_mlp.0.",
    ),
    "Z-Image": (
        "z-image/lora",
        ("layers.0.attention.to_q", 3840, 3840),
        "diffusion_model.layers.0.attention.to_q.",
    ),
    "Qwen-Image": (
        "qwen-image/lora",
        ("transformer_blocks.0.img_mlp.net.0.proj", 3072, 12288),
        "transformer.transformer_blocks.0.img_mlp.net.0.proj.",
    ),
    "Wan": (
        "wan-2.1/lora",
        ("blocks.0.attn1.to_q", 1536, 1536),
        "diffusion_model.blocks.0.self_attn.q.",
    ),
}


@pytest.mark.parametrize("family", CASES)
def test_keys_are_those_of_the_page(family: str) -> None:
    architecture, (module, inputs, outputs), start = CASES[family]
    factor = Factor(torch.ones(1, inputs), torch.ones(outputs, 1))
    metadata = AdapterMetadata(header={"modelspec.architecture": architecture})
    keys = Adapter({module: factor}, metadata).state_dict("auto")
    assert all(key.startswith(start) for key in keys)
    ending = "lora_down.weight" if start.startswith("lora_") else "lora_A.weight"
    assert f"{start}{ending}" in keys


def test_text_encoders_of_xl_are_numbered() -> None:
    factor = Factor(torch.ones(1, 768), torch.ones(768, 1))
    inside = "text_model.encoder.layers.0.self_attn.q_proj"
    metadata = AdapterMetadata(header={"modelspec.architecture": CASES["Stable Diffusion XL"][0]})
    adapter = Adapter({f"text_encoder.{inside}": factor}, metadata)
    assert all(key.startswith("lora_te1_") for key in adapter.state_dict("kohya"))
