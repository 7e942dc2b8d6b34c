"""The embedded base model: a small latent diffusion model as a real Stable Diffusion pipeline.

Every part is the class that Stable Diffusion 1.5 uses, only smaller, so whatever runs with one
runs with the other.
"""

import re
from collections.abc import Sequence

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lorasynth.avatars import captions
from lorasynth.avatars.config import AvatarModelConfig


def build_tokenizer(config: AvatarModelConfig) -> CLIPTokenizer:
    """A CLIP tokenizer that has every word of the captions as one token.

    Other words fall back to bytes, as byte-pair encodings do.  It is the same each time that it is
    built, so that training can resume.
    """
    words = {word for text in captions.corpus() for word in re.findall("[a-z]+", text)}
    merges = _merges(sorted(words))
    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    tokens += ["".join(pair) for pair in merges]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=config.tokens,
    )


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs to merge, in order, that make one token of each word."""
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:
            parts = _merge(parts, pair)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = _merge(parts, merges[-1])
    return merges


def _merge(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _block(attention: bool, name: str) -> str:
    return f"CrossAttn{name}" if attention else name


def build_autoencoder(config: AvatarModelConfig) -> AutoencoderKL:
    """The autoencoder with random weights."""
    return AutoencoderKL(
        sample_size=config.image_size,
        latent_channels=config.latent_channels,
        block_out_channels=config.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * len(config.vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(config.vae_channels),
        layers_per_block=1,
        norm_num_groups=config.vae_groups,
    )


def build_pipeline(config: AvatarModelConfig) -> StableDiffusionPipeline:
    """The pipeline with random weights."""
    tokenizer = build_tokenizer(config)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            projection_dim=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=config.latent_side,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_channels,
        down_block_types=tuple(_block(a, "DownBlock2D") for a in config.attention),
        up_block_types=tuple(_block(a, "UpBlock2D") for a in reversed(config.attention)),
        layers_per_block=1,
        norm_num_groups=config.unet_groups,
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,
        # The whole caption also scales and shifts each block, beside what attention takes of it.
        addition_embed_type="text",
        addition_embed_type_num_heads=config.heads,
        resnet_time_scale_shift="scale_shift",
    )
    # v-prediction down to zero signal, so that flat backgrounds get any brightness
    # (Salimans & Ho 2022; Lin et al. 2024).
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=build_autoencoder(config),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
