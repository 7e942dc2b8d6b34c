"""Pipelines of every kind that a base model may be, tiny and with random weights."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from lorasynth.avatars.model import AvatarModelConfig, build_pipeline, build_tokenizer

WORDS = ("a", "portrait", "of", "sks", "person", "sad", "red", "blue", "hoodie", "smiling")
SIZES = AvatarModelConfig(
    image_size=16,
    latent_channels=4,
    vae_channels=(8, 8),
    unet_channels=(32,),
    attention=(True,),
    text_width=16,
    text_layers=1,
    tokens=24,
    heads=2,
)


def clip(kind: type, layers: int = 1, width: int = 16) -> tuple[CLIPTokenizer, Any]:
    tokenizer = build_tokenizer(SIZES)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=12,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=SIZES.tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, kind(config)


def autoencoder(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=16,
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        **options,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing="trailing",
    )


def stable_diffusion() -> Any:
    return build_pipeline(SIZES)


def shrunk_stable_diffusion(shrink: int) -> Any:
    """Stable Diffusion 1.5's own blocks, all widths divided by `shrink`."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=tuple(width // shrink for width in (320, 640, 1280, 1280)),
        cross_attention_dim=768 // shrink,
        attention_head_dim=5,
        norm_num_groups=5,
    )
    tokenizer, text_encoder = clip(CLIPTextModel, width=768 // shrink)
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        layers_per_block=1,
        attention_head_dim=(2, 2),
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
        norm_num_groups=4,
    )
    tokenizer, text_encoder = clip(CLIPTextModel, layers=2)
    tokenizer_2, text_encoder_2 = clip(CLIPTextModelWithProjection, layers=2)
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler(),
        add_watermarker=False,
    )


def t5() -> tuple[T5TokenizerFast, T5EncoderModel]:
    letters = "abcdefghijklmnopqrstuvwxyz,"
    pieces = [*(f"▁{word}" for word in WORDS), *letters, "▁"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab = [*special, *((piece, -float(i)) for i, piece in enumerate(pieces))]
    tokenizer = T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=12)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return tokenizer, T5EncoderModel(config)


def flux() -> Any:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    tokenizer, text_encoder = clip(CLIPTextModel)
    tokenizer_2, text_encoder_2 = t5()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.12),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


#: One row for each kind of pipeline, by the name that its `model_index.json` has.
KINDS: dict[str, Callable[[], Any]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "FluxPipeline": flux,
}


def build(kind: str) -> Any:
    """The pipeline of a kind, the same each time."""
    torch.manual_seed(0)
    pipeline = KINDS[kind]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
