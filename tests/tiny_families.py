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
_FLOWING = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
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


def pipeline(
    kind: str,
    network: str,
    stated: dict[str, Any],
    vae: Any,
    text: tuple[Any, Any],
    scheduler: Any = None,
    **parts: Any,
) -> Any:
    """A pipeline of one network, one autoencoder and one text encoder; by default of a flow."""
    reader, encoder = text
    return getattr(diffusers, kind)(
        transformer=getattr(diffusers, network)(**stated),
        scheduler=scheduler or flow(),
        vae=vae,
        tokenizer=reader,
        text_encoder=encoder,
        **parts,
    )


#: What networks like FLUX's have in common here.
_FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
_SCALED = {"scaling_factor": 0.36, "shift_factor": 0.12}
_HEADS = {"attention_head_dim": 8, "num_attention_heads": 2}


def stable_diffusion_3() -> Any:
    first, second = (clip(transformers.CLIPTextModelWithProjection, layers=2) for _ in range(2))
    wide = {"d_model": 32, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    last = transformers.T5Config(vocab_size=len(t5()[0]), **wide)
    stated = {
        **_HEADS,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 16,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    return pipeline(
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        stated,
        autoencoder(scaling_factor=1.5, shift_factor=0.06),
        first,
        tokenizer_2=second[0],
        text_encoder_2=second[1],
        tokenizer_3=t5()[0],
        text_encoder_3=transformers.T5EncoderModel(last),
    )


def _flux2(kind: str, encoder: Any, *, guided: bool, **parts: Any) -> Any:
    rope = {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 8}
    stated = {**_FLUX, **rope, "num_single_layers": 1, "joint_attention_dim": 48}
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
    stated |= {"guidance_embeds": guided}
    text, steps = (tokenizer(), encoder), flow(use_dynamic_shifting=True)
    return pipeline(kind, "Flux2Transformer2DModel", stated, vae, text, steps, **parts)


def flux_2() -> Any:
    text = {**_STATED, "num_hidden_layers": 30, "num_key_value_heads": 1}
    text |= {"vocab_size": len(tokenizer()), "model_type": "mistral"}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "image_size": 16}
    config = transformers.Mistral3Config(
        text_config=text, vision_config={**vision, "patch_size": 8}
    )
    encoder = transformers.Mistral3ForConditionalGeneration(config)
    return _flux2("Flux2Pipeline", encoder, guided=True)


def flux_2_klein() -> Any:
    encoder = language_model("Qwen3ForCausalLM", "Qwen3Config", layers=28)
    return _flux2("Flux2KleinPipeline", encoder, guided=False, is_distilled=False)


def chroma() -> Any:
    own = {"approximator_num_channels": 64, "approximator_hidden_dim": 16, "approximator_layers": 1}
    stated = {**_FLUX, **own, "num_single_layers": 1}
    steps = flow(use_dynamic_shifting=True)
    vae = autoencoder(**_SCALED)
    return pipeline("ChromaPipeline", "ChromaTransformer2DModel", stated, vae, t5(), steps)


def z_image() -> Any:
    stated = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 16,
        "axes_dims": [4, 6, 6],
        "axes_lens": [64, 32, 32],
    }
    text = tokenizer(), language_model("Qwen3Model", "Qwen3Config")
    vae = autoencoder(**_SCALED)
    return pipeline("ZImagePipeline", "ZImageTransformer2DModel", stated, vae, text)


def qwen_image() -> Any:
    text = {**_STATED, "num_hidden_layers": 1, "num_key_value_heads": 1}
    text |= {"vocab_size": len(tokenizer()), "pad_token_id": 0, "bos_token_id": 1}
    text |= {"eos_token_id": 1, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config={**vision, "out_hidden_size": 16, "patch_size": 4}
    )
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return pipeline(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        {**_FLUX, "out_channels": 4},
        diffusers.AutoencoderKLQwenImage(**_VIDEO, temperal_downsample=[False]),
        (tokenizer(96), encoder),
        flow(use_dynamic_shifting=True, shift_terminal=0.02),
    )


def lumina_2() -> Any:
    stated = {
        "sample_size": 4,
        "in_channels": 4,
        "hidden_size": 48,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 16,
        "axes_dim_rope": (4, 6, 6),
        "axes_lens": (64, 32, 32),
        "cap_feat_dim": 16,
    }
    vae = diffusers.AutoencoderKL(
        sample_size=32,
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        **_SCALED,
    )
    text = tokenizer(48), language_model("Gemma2Model", "Gemma2Config")
    steps = flow(6.0)
    return pipeline("Lumina2Pipeline", "Lumina2Transformer2DModel", stated, vae, text, steps)


def pixart(kind: str, **stated: Any) -> Any:
    stated |= {"num_attention_heads": 2, "num_layers": 1, "caption_channels": 16}
    steps = diffusers.DPMSolverMultistepScheduler()
    return pipeline(kind, "PixArtTransformer2DModel", stated, autoencoder(), t5(), steps)


def pixart_alpha() -> Any:
    """With the conditions on sizes that its models of 1024 pixels have."""
    wide = {"attention_head_dim": 12, "cross_attention_dim": 24, "sample_size": 128}
    return pixart("PixArtAlphaPipeline", **wide, use_additional_conditions=True)


def pixart_sigma() -> Any:
    small = {"attention_head_dim": 8, "cross_attention_dim": 16, "sample_size": 8}
    return pixart("PixArtSigmaPipeline", **small, use_additional_conditions=False)


def sana() -> Any:
    stated = {**_HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    stated |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
    stated |= {"cross_attention_dim": 16, "caption_channels": 16}
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41,
    )
    steps = diffusers.DPMSolverMultistepScheduler(**_FLOWING)
    text = tokenizer(), language_model("Gemma2Model", "Gemma2Config")
    return pipeline("SanaPipeline", "SanaTransformer2DModel", stated, vae, text, steps)


def wan(*, expanded: bool = False) -> Any:
    stated = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4}
    stated |= {"out_channels": 4, "text_dim": 16, "freq_dim": 8, "ffn_dim": 16}
    stated |= {"num_layers": 1, "rope_max_seq_len": 32}
    return pipeline(
        "WanPipeline",
        "WanTransformer3DModel",
        stated,
        diffusers.AutoencoderKLWan(**_VIDEO, temperal_downsample=[False], scale_factor_spatial=2),
        umt5(),
        diffusers.UniPCMultistepScheduler(**_FLOWING),
        expand_timesteps=expanded,
    )


def auraflow() -> Any:
    stated = {**_HEADS, "sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
    stated |= {"joint_attention_dim": 16, "caption_projection_dim": 16, "pos_embed_max_size": 256}
    network, steps = "AuraFlowTransformer2DModel", flow(1.73)
    return pipeline("AuraFlowPipeline", network, stated, autoencoder(), umt5(), steps)


def hidream() -> Any:
    first, second = (clip(transformers.CLIPTextModelWithProjection, layers=2) for _ in range(2))
    stated = {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_channels": [16, 16],
        "text_emb_dim": 24,
        "num_routed_experts": 2,  # both are used, so that there are slopes to compare with
        "num_activated_experts": 2,
        "axes_dims_rope": (4, 6, 6),
        "max_resolution": (16, 16),
        "llama_layers": [0, 1],
    }
    last = language_model("LlamaForCausalLM", "LlamaConfig", attn_implementation="eager")
    return pipeline(
        "HiDreamImagePipeline",
        "HiDreamImageTransformer2DModel",
        stated,
        autoencoder(**_SCALED),
        first,
        diffusers.UniPCMultistepScheduler(**_FLOWING),
        tokenizer_2=second[0],
        text_encoder_2=second[1],
        tokenizer_3=t5()[0],
        text_encoder_3=t5()[1],
        tokenizer_4=tokenizer(),
        text_encoder_4=last,
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
    "PixArtAlphaPipeline": pixart_alpha,
    "PixArtSigmaPipeline": pixart_sigma,
    "SanaPipeline": sana,
    "WanPipeline": wan,
    "AuraFlowPipeline": auraflow,
    "HiDreamImagePipeline": hidream,
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
