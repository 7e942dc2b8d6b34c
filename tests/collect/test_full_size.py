"""One step of a fleet on the whole U-Net of Stable Diffusion 1.5, of random weights, in bf16.

Takes minutes where bf16 products are emulated, and 2.3 GB: `pytest -m slow tests/collect`.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from lorasynth.base import Memory, StableDiffusion
from lorasynth.base.avatar_model import AvatarModelConfig, build_tokenizer
from lorasynth.collect import PRESETS, train_fleet
from lorasynth.pictures import Subject
from lorasynth.randomness import torch_stream

SIDE = 64
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
#: There the latents have shrunk to a single one, whose attention to itself has no gradient.
INNERMOST = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_k")


def whole_unet():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        ).bfloat16()
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    unet.to_empty(device="cpu")
    stream = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.dim() < 2:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))
        else:
            parameter.data.normal_(generator=stream).mul_(parameter[0].numel() ** -0.5)
    return unet


@pytest.fixture(scope="module")
def base():
    """The U-Net is whole; what stands before and behind it is small."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(AvatarModelConfig(tokens=77))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=64,
        num_hidden_layers=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.bfloat16(),
        text_encoder=CLIPTextModel(text).bfloat16(),
        tokenizer=tokenizer,
        unet=whole_unet(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    base = StableDiffusion(pipeline, "whole", picture_size=SIDE)
    Memory(gradient_checkpointing=True).apply(base.denoiser, base.name)
    return base


def subject(name):
    pictures = torch.randint(256, (2, SIDE, SIDE, 3), generator=torch_stream(0, name))
    return Subject(
        id=name, pictures=pictures.to(torch.uint8), captions=["a portrait of sks", "sks, sad"]
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "modules"), [("ours", 160), ("weights2weights", 64)])
def test_a_fleet_of_two_takes_a_step(base, name, modules):
    recipe = replace(PRESETS[name], steps=1, pictures_per_step=1)
    classes = torch.randn(2, *base.latent_shape, generator=torch_stream(1)).bfloat16()
    fleet = train_fleet(base, recipe, [subject("ann"), subject("ben")], classes=classes)
    assert len(fleet.factors) == modules
    assert fleet.losses.shape == (2, 1)
    assert 0.1 < fleet.losses.mean() < 10
    for module, factor in fleet.factors.items():
        assert factor.B.dtype == torch.float32
        assert factor.B.isfinite().all()
        if module not in INNERMOST:
            assert factor.B.flatten(1).any(dim=1).all(), module
            assert not factor.B[0].equal(factor.B[1]), module
