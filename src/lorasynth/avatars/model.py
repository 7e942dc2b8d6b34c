"""The embedded base model: a small latent diffusion model as a real Stable Diffusion pipeline.

Every part is the class that Stable Diffusion 1.5 uses, only smaller, so whatever runs with one
runs with the other.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lorasynth.avatars import captions
from lorasynth.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AvatarModelConfig:
    """The sizes of the embedded model.

    Attributes:
        image_size: in pixels.
        latent_channels: of a latent.
        vae_channels: per resolution of the autoencoder, which halves the side between two; its
            decoder has two blocks at each, its encoder one.
        unet_channels: per resolution of the U-Net.
        attention: which resolutions of the U-Net have attention.
        text_width: of the text encoder, and so of cross-attention.
        text_layers: of the text encoder.
        tokens: that a caption may have.
        heads: of every attention layer.
        vae_groups: of the autoencoder's group norms; few, since a group of two channels forgets
            the level of a flat area, its colour.
        unet_groups: of the U-Net's group norms.
    """

    image_size: int = 128
    latent_channels: int = 16
    vae_channels: tuple[int, ...] = (16, 16, 32, 64, 128)
    unet_channels: tuple[int, ...] = (64, 192)
    attention: tuple[bool, ...] = (True, True)
    text_width: int = 160
    text_layers: int = 2
    tokens: int = 40
    heads: int = 4
    vae_groups: int = 2
    unet_groups: int = 8

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.unet_channels):
            raise ConfigError(
                "attention must be stated for each resolution of the U-Net, but there are "
                f"{len(self.unet_channels)} in unet_channels and {len(self.attention)} in attention"
            )

    @property
    def latent_side(self) -> int:
        """Height and width of a latent."""
        return self.image_size >> (len(self.vae_channels) - 1)


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
