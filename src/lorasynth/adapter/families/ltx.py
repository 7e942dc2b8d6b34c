"""LTX-Video; its LoRAs have diffusers' names everywhere."""

from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.names import Table

LTX = Family(
    name="LTX-Video",
    table=Table("""
patchify_proj = proj_in
adaln_single.emb.timestep_embedder.linear_1 = time_embed.emb.timestep_embedder.linear_1
adaln_single.emb.timestep_embedder.linear_2 = time_embed.emb.timestep_embedder.linear_2
adaln_single.linear = time_embed.linear
caption_projection.linear_1
caption_projection.linear_2
proj_out
transformer_blocks.#:
  attn1.to_q
  attn1.to_k
  attn1.to_v
  attn1.to_out.0
  attn2.to_q
  attn2.to_k
  attn2.to_v
  attn2.to_out.0
  ff.net.0.proj
  ff.net.2
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB diffusers",
    text=("t5xxl",),
    widths={f"attn{n}.to_{part}": (2048, 4096) for n in (1, 2) for part in ("q", "k", "v")},
    depths={"transformer_blocks": 48},
    base_version="ltxv",
    architecture="ltx-video/lora",
    programs=(),
)
