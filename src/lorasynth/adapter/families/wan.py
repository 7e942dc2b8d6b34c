"""Wan 2.1 and 2.2."""

from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.names import Table

WAN = Family(
    name="Wan",
    table=Table("""
patch_embedding
text_embedding.0 = condition_embedder.text_embedder.linear_1
text_embedding.2 = condition_embedder.text_embedder.linear_2
time_embedding.0 = condition_embedder.time_embedder.linear_1
time_embedding.2 = condition_embedder.time_embedder.linear_2
time_projection.1 = condition_embedder.time_proj
img_emb.proj.1 = condition_embedder.image_embedder.ff.net.0.proj
img_emb.proj.3 = condition_embedder.image_embedder.ff.net.2
head.head = proj_out
blocks.#:
  self_attn.q = attn1.to_q
  self_attn.k = attn1.to_k
  self_attn.v = attn1.to_v
  self_attn.o = attn1.to_out.0
  cross_attn.q = attn2.to_q
  cross_attn.k = attn2.to_k
  cross_attn.v = attn2.to_v
  cross_attn.o = attn2.to_out.0
  cross_attn.k_img = attn2.add_k_proj
  cross_attn.v_img = attn2.add_v_proj
  ffn.0 = ffn.net.0.proj
  ffn.2 = ffn.net.2
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB published; "
    "diffusion_model. du published; lora_unet_ du published blocks !condition_embedder. !proj_out "
    "!patch_embedding",
    text=("umt5xxl",),
    widths={"attn1.to_q": (1536, 3072, 5120), "attn2.to_q": (1536, 3072, 5120)},
    depths={"blocks": 40},
    base_version="wan2.1",
    architecture="wan-2.1/lora",
    resolution="1280x720",
    network_module="networks.lora_wan",
)
