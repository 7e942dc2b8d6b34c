"""FLUX.2: dev, klein 4B and klein 9B."""

from lorasynth.adapter.families.contract import Family, also
from lorasynth.adapter.names import Table

#: ComfyUI looks for FLUX.1's names under diffusers' prefixes.
_PREFIXES = ("transformer.", "lora_transformer_", "lycoris_")
_NOT_FLUX1S = (
    "-*.linear_in -*.linear_out -single_transformer_blocks. -time_guidance_embed. "
    "-double_stream -single_stream"
)

FLUX2 = Family(
    name="FLUX.2",
    table=Table("""
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
single_stream_modulation.lin = single_stream_modulation.linear
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 ~ norm_out.linear
double_blocks.# = transformer_blocks.#:
  img_attn.qkv = attn.to_q + attn.to_k + attn.to_v
  img_attn.proj = attn.to_out.0
  img_mlp.0 = ff.linear_in
  img_mlp.2 = ff.linear_out
  txt_attn.qkv = attn.add_q_proj + attn.add_k_proj + attn.add_v_proj
  txt_attn.proj = attn.to_add_out
  txt_mlp.0 = ff_context.linear_in
  txt_mlp.2 = ff_context.linear_out
single_blocks.# = single_transformer_blocks.#:
  linear1 = attn.to_qkv_mlp_proj
  linear2 = attn.to_out
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB published -norm_out.; "
    "diffusion_model. AB diffusers; base_model.model. AB diffusers; "
    "base_model.model. AB published -norm_out.; "
    "lora_unet_ du published -norm_out. -double_stream -single_stream "
    "-*.guidance_embedder.linear_1 -*.guidance_embedder.linear_2",
    comfyui_reads=also(*(f"{prefix} * diffusers {_NOT_FLUX1S}" for prefix in _PREFIXES)),
    text=("mistral3_24b",),
    widths={"attn.to_q": (6144, 4096, 3072), "attn.to_qkv_mlp_proj": (6144, 4096, 3072)},
    ratios={
        **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"), 1),
        **{f"{which}.linear_in": 6 for which in ("ff", "ff_context")},
        **{f"{which}.linear_out": 1 / 3 for which in ("ff", "ff_context")},
        "attn.to_qkv_mlp_proj": 9,
        "attn.to_out": 1 / 4,
    },
    depths={"transformer_blocks": 8, "single_transformer_blocks": 48},
    base_version="flux2",
    architecture="flux-2/lora",
    network_module="networks.lora_flux_2",
)
