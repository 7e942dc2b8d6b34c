"""Anima, a Cosmos transformer with a text conditioner, of which adapters change the transformer."""

from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.names import Table

ANIMA = Family(
    name="Anima",
    table=Table("""
x_embedder.proj.1 = patch_embed.proj
t_embedder.1.linear_1 = time_embed.t_embedder.linear_1
t_embedder.1.linear_2 = time_embed.t_embedder.linear_2
final_layer.adaln_modulation.1 = norm_out.linear_1
final_layer.adaln_modulation.2 = norm_out.linear_2
final_layer.linear = proj_out
blocks.# = transformer_blocks.#:
  adaln_modulation_self_attn.1 = norm1.linear_1
  adaln_modulation_self_attn.2 = norm1.linear_2
  adaln_modulation_cross_attn.1 = norm2.linear_1
  adaln_modulation_cross_attn.2 = norm2.linear_2
  adaln_modulation_mlp.1 = norm3.linear_1
  adaln_modulation_mlp.2 = norm3.linear_2
  self_attn.q_proj = attn1.to_q
  self_attn.k_proj = attn1.to_k
  self_attn.v_proj = attn1.to_v
  self_attn.output_proj = attn1.to_out.0
  cross_attn.q_proj = attn2.to_q
  cross_attn.k_proj = attn2.to_k
  cross_attn.v_proj = attn2.to_v
  cross_attn.output_proj = attn2.to_out.0
  mlp.layer1 = ff.net.0.proj
  mlp.layer2 = ff.net.2
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB published",
    text=("qwen3_06b",),
    widths={"attn1.to_q": (2048,), "attn2.to_k": (1024,), "attn2.to_v": (1024,)},
    depths={"transformer_blocks": 28},
    base_version="anima",
    architecture="anima/lora",
)
