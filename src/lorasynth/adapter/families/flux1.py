"""FLUX.1 and Chroma, which is FLUX.1 with its modulations in one small network."""

from lorasynth.adapter.families.contract import Family, also
from lorasynth.adapter.names import Table

_BLOCKS = """
img_in = x_embedder
txt_in = context_embedder
final_layer.linear = proj_out
double_blocks.# = transformer_blocks.#:
  img_attn.qkv = attn.to_q + attn.to_k + attn.to_v
  img_attn.proj = attn.to_out.0
  img_mlp.0 = ff.net.0.proj
  img_mlp.2 = ff.net.2
  txt_attn.qkv = attn.add_q_proj + attn.add_k_proj + attn.add_v_proj
  txt_attn.proj = attn.to_add_out
  txt_mlp.0 = ff_context.net.0.proj
  txt_mlp.2 = ff_context.net.2
single_blocks.# = single_transformer_blocks.#:
  linear1 = attn.to_q + attn.to_k + attn.to_v + 4*proj_mlp
  linear2 = proj_out
"""
_WIDTHS = {"attn.to_q": (3072,), "attn.add_q_proj": (3072,), "attn.to_out.0": (3072,)}
_RATIOS = {
    **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"), 1),
    **{f"ff{which}.net.0.proj": 4 for which in ("", "_context")},
    **{f"ff{which}.net.2": 1 / 4 for which in ("", "_context")},
    "proj_mlp": 4,
    "single_transformer_blocks.proj_out": 1 / 5,
}
#: What diffusers' converter of kohya's names leaves out.
_OUTSIDE = "-time_text_embed. -x_embedder -context_embedder -norm_out. -proj_out"
_INSIDE = "!distilled_guidance_layer -x_embedder -context_embedder -proj_out"
_COMFYUI = also(
    *(f"{prefix} * diffusers" for prefix in ("lora_transformer_", "lycoris_", "transformer."))
)
_DEPTHS = {"transformer_blocks": 19, "single_transformer_blocks": 38}

FLUX1 = Family(
    name="FLUX.1",
    table=Table(_BLOCKS + """
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
final_layer.adaLN_modulation.1 ~ norm_out.linear
double_blocks.# = transformer_blocks.#:
  img_mod.lin = norm1.linear
  txt_mod.lin = norm1_context.linear
single_blocks.# = single_transformer_blocks.#:
  modulation.lin = norm.linear
"""),
    universal="kohya",
    diffusers_reads="transformer. AB diffusers; transformer. AB+alpha diffusers; "
    f"lora_unet_ du published {_OUTSIDE}; diffusion_model. du published {_OUTSIDE}",
    comfyui_reads=_COMFYUI,
    text=("clip_l", "t5xxl"),
    widths=_WIDTHS,
    ratios=_RATIOS,
    depths=_DEPTHS,
    base_version="flux1",
    architecture="flux-1-dev/lora",
    network_module="networks.lora_flux",
    programs=("kohya", "a1111", "ai-toolkit"),
)  # fmt: skip
CHROMA = Family(
    name="Chroma",
    table=Table(_BLOCKS + """
distilled_guidance_layer.in_proj
distilled_guidance_layer.out_proj
distilled_guidance_layer.layers.#:
  in_layer = linear_1
  out_layer = linear_2
"""),
    universal="kohya",
    diffusers_reads="transformer. AB diffusers; transformer. AB+alpha diffusers; "
    f"lora_unet_ du published {_INSIDE}; diffusion_model. du published {_INSIDE}",
    comfyui_reads=f"{_COMFYUI} -distilled_guidance_layer.",
    text=("t5xxl",),
    widths=_WIDTHS,
    ratios=_RATIOS,
    depths=_DEPTHS,
    base_version="chroma",
    architecture="chroma/lora",
    network_module="networks.lora_flux",
)  # fmt: skip
