"""kohya's names of the layers of real architectures: one for each, and back again."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from lorasynth.adapter.files import FORMATS
from lorasynth.adapter.files._kohya_names import (
    dotted,
    from_flux,
    from_original,
    to_flux,
    to_original,
    underscored,
)


def adaptable(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def sd1() -> UNet2DConditionModel:
    return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)


def sdxl() -> UNet2DConditionModel:
    """The shape of SDXL: which blocks attend, how deep, and what is added to the time."""
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


@pytest.fixture(scope="module", params=[sd1, sdxl])
def unet_names(request: pytest.FixtureRequest) -> list[str]:
    with torch.device("meta"):
        return adaptable(request.param())


def test_underscored_names_of_a_unet_are_restored(unet_names: list[str]) -> None:
    assert len(unet_names) > 200
    assert [dotted(underscored(name)) for name in unet_names] == unet_names


def test_original_names_of_a_unet_are_its_own_and_restored(unet_names: list[str]) -> None:
    originals = [underscored(to_original(name)) for name in unet_names]
    assert len(set(originals)) == len(originals)
    assert [from_original(name) for name in originals] == unet_names


#: From kohya's own files for SDXL.
SDXL_EXAMPLES = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_4_1_"
    "transformer_blocks_0_attn1_to_q",
    "down_blocks.2.attentions.1.proj_in": "input_blocks_8_1_proj_in",
    "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
    "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj": "middle_block_1_"
    "transformer_blocks_9_ff_net_0_proj",
    "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0": "output_blocks_2_1_"
    "transformer_blocks_9_attn2_to_out_0",
    "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
    "up_blocks.2.resnets.2.conv2": "output_blocks_8_0_out_layers_3",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
}


@pytest.mark.parametrize("module", SDXL_EXAMPLES)
def test_examples_of_sdxl(module: str) -> None:
    assert underscored(to_original(module)) == SDXL_EXAMPLES[module]


def test_an_upsampler_without_attention_before_it_is_read_too() -> None:
    assert from_original("output_blocks_2_1_conv") == "up_blocks.0.upsamplers.0.conv"


def test_every_layer_of_flux_is_in_one_layer_as_published() -> None:
    with torch.device("meta"):
        names = adaptable(FluxTransformer2DModel(num_layers=2, num_single_layers=2))
    layers = to_flux(names)
    assert layers is not None
    assert sorted(module for layer in layers.values() for module in layer.modules) == sorted(names)
    assert all(from_flux(name) == layer for name, layer in layers.items())
    assert "double_blocks_1_img_attn_qkv" in layers
    assert "single_blocks_0_linear1" in layers
    assert to_flux([*names, "down_blocks.0.resnets.0.conv1"]) is None


def test_names_of_a_text_encoder_are_restored() -> None:
    with torch.device("meta"):
        names = adaptable(CLIPTextModel(CLIPTextConfig(num_hidden_layers=2)))
    names = [f"text_model.{name.removeprefix('text_model.')}" for name in names]
    assert len(names) == 12
    assert [dotted(underscored(name)) for name in names] == names


def test_names_of_t5_are_restored() -> None:
    with torch.device("meta"):
        config = T5Config(num_layers=2, feed_forward_proj="gated-gelu")
        names = adaptable(T5EncoderModel(config))
    assert "encoder.block.1.layer.1.DenseReluDense.wi_0" in names
    assert [dotted(underscored(name)) for name in names] == names


@pytest.mark.parametrize("number", [2, 3])
def test_t5_of_flux_is_read_by_both_of_its_numbers(number: int, tmp_path: Path) -> None:
    names = {
        "lora_unet_single_blocks_0_linear2": (8, 40),
        f"lora_te{number}_encoder_block_0_layer_0_SelfAttention_q": (6, 6),
    }
    tensors = {}
    for name, (out_features, in_features) in names.items():
        tensors[f"{name}.lora_down.weight"] = torch.ones(2, in_features)
        tensors[f"{name}.lora_up.weight"] = torch.ones(out_features, 2)
    save_file(tensors, tmp_path / "flux.safetensors")
    read = FORMATS.get("kohya")().read(tmp_path / "flux.safetensors")
    assert set(read.factors) == {
        "single_transformer_blocks.0.proj_out",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    }
