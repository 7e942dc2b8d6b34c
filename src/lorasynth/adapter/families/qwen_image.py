"""Qwen-Image, published in diffusers' names."""

from lorasynth.adapter.families.contract import Family, also
from lorasynth.adapter.names import Table

QWEN_IMAGE = Family(
    name="Qwen-Image",
    table=Table("""
img_in
txt_in
proj_out
norm_out.linear
time_text_embed.timestep_embedder.linear_1
time_text_embed.timestep_embedder.linear_2
transformer_blocks.#:
  img_mod.1
  txt_mod.1
  attn.to_q
  attn.to_k
  attn.to_v
  attn.add_q_proj
  attn.add_k_proj
  attn.add_v_proj
  attn.to_out.0
  attn.to_add_out
  img_mlp.net.0.proj
  img_mlp.net.2
  txt_mlp.net.0.proj
  txt_mlp.net.2
"""),
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB diffusers; "
    "diffusion_model. du diffusers; lora_unet_ du diffusers; bare du diffusers; "
    "bare default diffusers",
    comfyui_reads=also("transformer. * diffusers", "lycoris_ * diffusers", "bare * diffusers"),
    text=("qwen25_7b",),
    widths={"attn.to_q": (3072,), "attn.add_q_proj": (3072,)},
    ratios={"attn.to_q": 1},
    depths={"transformer_blocks": 60},
    base_version="qwen_image",
    architecture="qwen-image/lora",
    network_module="networks.lora_qwen_image",
)
