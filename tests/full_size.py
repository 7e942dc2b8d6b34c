"""Stable Diffusion 1.5's U-Net whole, with random weights in bf16, and small parts around it."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lorasynth.avatars.model import AvatarModelConfig, build_tokenizer


def whole_unet() -> UNet2DConditionModel:
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


def whole_pipeline() -> StableDiffusionPipeline:
    """What stands before and behind the U-Net is small."""
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
    return StableDiffusionPipeline(
        vae=vae.bfloat16(),
        text_encoder=CLIPTextModel(text).bfloat16(),
        tokenizer=tokenizer,
        unet=whole_unet(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
