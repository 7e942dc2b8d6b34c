"""A tiny pipeline of every family that is carried by diffusers' own call, with random weights.

Classes of networks and text encoders are the true ones; tokenizers split at blanks.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tiny_pipelines import KINDS, WORDS, autoencoder, clip, t5

_CHAT = (
    "{% for m in messages %}{{ m.role }} {% if m.content is string %}{{ m.content }}{% else %}"
    "{{ m.content[0].text }}{% endif %} {% endfor %}"
)
_SPECIAL = ("<pad>", "<eos>", "<unk>")
_STATED = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
_LATENTS = {"latents_mean": [0.3, -0.2, 0.1, 0.5], "latents_std": [1.5, 0.7, 1.1, 2.0]}
_VIDEO = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, **_LATENTS}


def tokenizer(limit: int = 24) -> PreTrainedTokenizerFast:
    """A tokenizer of words, padded on the right, with a template for chats."""
    vocab = {word: i for i, word in enumerate((*_SPECIAL, *WORDS, ",", ":", "|", "user", "system"))}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=limit,
        padding_side="right",
    )
    fast.chat_template = _CHAT
    return fast


def language_model(kind: str, config: str, layers: int = 2, **options: Any) -> Any:
    """A tiny causal language model or its trunk."""
    stated = {**_STATED, "num_key_value_heads": 1, "num_hidden_layers": layers, **options}
    vocab = len(tokenizer())
    return getattr(transformers, kind)(getattr(transformers, config)(vocab_size=vocab, **stated))


def umt5() -> tuple[Any, Any]:
    reader, _ = t5()
    config = transformers.UMT5Config(
        vocab_size=len(reader), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return reader, transformers.UMT5EncoderModel(config)


def flow(shift: float = 3.0, **options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift, **options)


def stable_diffusion_3() -> Any:
    first, second = (
        clip(transformers.CLIPTextModelWithProjection, layers=2),
        clip(transformers.CLIPTextModelWithProjection, layers=2),
    )
    last = transformers.T5Config(
        vocab_size=len(t5()[0]), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=24,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=flow(),
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.06),
        tokenizer=first[0],
        text_encoder=first[1],
        tokenizer_2=second[0],
        text_encoder_2=second[1],
        tokenizer_3=t5()[0],
        text_encoder_3=transformers.T5EncoderModel(last),
    )


def _flux2_parts(width: int, *, guided: bool) -> dict[str, Any]:
    return {
        "transformer": diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            timestep_guidance_channels=8,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guided,
        ),
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": _flux2_autoencoder(),
        "tokenizer": tokenizer(),
    }


def _flux2_autoencoder() -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=16,
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        layers_per_block=1,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def flux_2() -> Any:
    text = {**_STATED, "num_hidden_layers": 30, "num_key_value_heads": 1}
    text |= {"vocab_size": len(tokenizer()), "model_type": "mistral"}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "image_size": 16}
    config = transformers.Mistral3Config(
        text_config=text, vision_config={**vision, "patch_size": 8}
    )
    encoder = transformers.Mistral3ForConditionalGeneration(config)
    return diffusers.Flux2Pipeline(text_encoder=encoder, **_flux2_parts(48, guided=True))


def flux_2_klein() -> Any:
    encoder = language_model("Qwen3ForCausalLM", "Qwen3Config", layers=28)
    return diffusers.Flux2KleinPipeline(
        text_encoder=encoder, is_distilled=False, **_flux2_parts(48, guided=False)
    )


def chroma() -> Any:
    reader, encoder = t5()
    return diffusers.ChromaPipeline(
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=64,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.12),
        tokenizer=reader,
        text_encoder=encoder,
    )


def z_image() -> Any:
    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[64, 32, 32],
        ),
        scheduler=flow(),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.12),
        tokenizer=tokenizer(),
        text_encoder=language_model("Qwen3Model", "Qwen3Config"),
    )


def qwen_image() -> Any:
    text = {**_STATED, "num_hidden_layers": 1, "num_key_value_heads": 1}
    text |= {"vocab_size": len(tokenizer()), "pad_token_id": 0, "bos_token_id": 1}
    text |= {"eos_token_id": 1, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config={**vision, "out_hidden_size": 16, "patch_size": 4}
    )
    return diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=diffusers.AutoencoderKLQwenImage(**_VIDEO, temperal_downsample=[False]),
        tokenizer=tokenizer(96),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
    )


def lumina_2() -> Any:
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=4,
            in_channels=4,
            hidden_size=32,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(64, 32, 32),
            cap_feat_dim=16,
        ),
        scheduler=flow(6.0),
        vae=diffusers.AutoencoderKL(
            sample_size=32,
            latent_channels=4,
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            scaling_factor=0.36,
            shift_factor=0.12,
        ),
        tokenizer=tokenizer(48),
        text_encoder=language_model("Gemma2Model", "Gemma2Config"),
    )


def pixart_sigma() -> Any:
    reader, encoder = t5()
    return diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            use_additional_conditions=False,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        vae=autoencoder(),
        tokenizer=reader,
        text_encoder=encoder,
    )


def sana() -> Any:
    return diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.41,
        ),
        tokenizer=tokenizer(),
        text_encoder=language_model("Gemma2Model", "Gemma2Config"),
    )


def wan(*, expanded: bool = False) -> Any:
    reader, encoder = umt5()
    return diffusers.WanPipeline(
        transformer=diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=8,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=32,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        vae=diffusers.AutoencoderKLWan(
            **_VIDEO, temperal_downsample=[False], scale_factor_spatial=2
        ),
        tokenizer=reader,
        text_encoder=encoder,
        expand_timesteps=expanded,
    )


def auraflow() -> Any:
    reader, encoder = umt5()
    return diffusers.AuraFlowPipeline(
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=256,
        ),
        scheduler=flow(1.73),
        vae=autoencoder(),
        tokenizer=reader,
        text_encoder=encoder,
    )


#: One builder for each row of `BASE_MODELS`, by the name of its pipeline.
BUILDERS: dict[str, Callable[[], Any]] = {
    **KINDS,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "Flux2Pipeline": flux_2,
    "Flux2KleinPipeline": flux_2_klein,
    "ChromaPipeline": chroma,
    "ZImagePipeline": z_image,
    "QwenImagePipeline": qwen_image,
    "Lumina2Pipeline": lumina_2,
    "PixArtSigmaPipeline": pixart_sigma,
    "SanaPipeline": sana,
    "WanPipeline": wan,
    "AuraFlowPipeline": auraflow,
}


def build(family: str) -> Any:
    """The pipeline of a family, the same each time; no weight or bias is zero."""
    torch.manual_seed(0)
    pipeline = BUILDERS[family]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
