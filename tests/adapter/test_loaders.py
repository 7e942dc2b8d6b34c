"""Files load into real pipelines and change their U-Net by exactly ΔW."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import PeftModel
from torch import nn

from lorasynth.adapter import (
    Adapter,
    Factor,
    Factors,
    Layout,
    canonicalise,
    choose_reference,
    unstack,
)

#: Attention, feed-forward and projection layers: everything that adapters here may change.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")


@pytest.fixture(scope="module")
def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


@pytest.fixture(scope="module")
def linears(tiny_unet: UNet2DConditionModel) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in tiny_unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(TARGETS)
    }


@pytest.fixture(scope="module", params=["one rank", "mixed ranks"])
def adapter(request, linears: dict[str, nn.Linear], tiny_unet: UNet2DConditionModel) -> Adapter:
    """A canonical adapter, as a synthesizer makes it, and convolutions."""
    layout = Layout.from_linears(linears, rank=2)
    if request.param == "mixed ranks":
        ones = Layout.from_linears(linears, rank=1).slots
        layout = Layout.from_slots([*layout.slots[::2], *ones[1::2]])
    vectors = torch.randn(1, layout.size, generator=torch.Generator().manual_seed(1))
    factors = layout.unflatten(vectors * 0.4)
    canonical = canonicalise(factors, "procrustes", choose_reference(factors, "procrustes"))
    convolutions = {n: m for n, m in tiny_unet.named_modules() if n.endswith(CONVOLUTIONS)}
    widths = {n: m.weight.flatten(1).shape for n, m in convolutions.items()}
    extra = {
        n: Factor(torch.randn(2, w), torch.randn(out, 2) / w) for n, (out, w) in widths.items()
    }
    kernels = {name: module.kernel_size for name, module in convolutions.items()}
    return Adapter({**unstack(canonical)[0], **extra}, kernels=kernels)


def output(unet: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 12, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor([5, 700]), encoder_hidden_states=text).sample


def merged(unet: UNet2DConditionModel, factors: Factors) -> UNet2DConditionModel:
    """A copy of the U-Net with W + ΔW made by hand."""
    copied = copy.deepcopy(unet)
    for module, factor in factors.items():
        weight = copied.get_submodule(module).weight.data
        weight += (factor.B @ factor.A).view_as(weight)
    return copied


def pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=copy.deepcopy(unet),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def loaded(unet: UNet2DConditionModel, adapter: Adapter, name: str, folder: Path) -> nn.Module:
    if name == "peft":
        path = adapter.save(folder / "peft", format=name)
        return PeftModel.from_pretrained(copy.deepcopy(unet), path)
    pipe = pipeline(unet)
    pipe.load_lora_weights(str(adapter.save(folder / f"{name}.safetensors", format=name)))
    return pipe.unet


@pytest.mark.parametrize("name", ["diffusers", "kohya", "peft"])
def test_a_loaded_file_changes_the_unet_by_its_update(
    name: str, adapter: Adapter, tiny_unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    base, reference = output(tiny_unet), output(merged(tiny_unet, adapter.factors))
    found = output(loaded(tiny_unet, adapter, name, tmp_path))
    assert (reference - base).norm() > 0.05 * base.norm(), "the adapter must do something"
    assert (found - reference).norm() / (reference - base).norm() < 1e-3


def test_a_file_saved_by_diffusers_keeps_its_alpha(
    tiny_unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft import LoraConfig, get_peft_model_state_dict

    assert LORA_ADAPTER_METADATA_KEY == "lora_adapter_metadata"
    unet = copy.deepcopy(tiny_unet)
    config = LoraConfig(r=2, lora_alpha=7, target_modules=["to_q", "to_v"], init_lora_weights=False)
    unet.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata={
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.to_dict().items()
        },
    )
    found = output(merged(tiny_unet, Adapter.load(tmp_path).factors))
    torch.testing.assert_close(found, output(unet), rtol=1e-4, atol=1e-5)
