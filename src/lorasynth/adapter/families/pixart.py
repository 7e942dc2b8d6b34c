"""PixArt-alpha and -sigma, and Sana, of which no published names are in use."""

from lorasynth.adapter.families.contract import Family, also
from lorasynth.adapter.names import Table

PIXART = Family(
    name="PixArt",
    table=Table("""
x_embedder.proj = pos_embed.proj
y_embedder.y_proj.fc1 = caption_projection.linear_1
y_embedder.y_proj.fc2 = caption_projection.linear_2
t_embedder.mlp.0 = adaln_single.emb.timestep_embedder.linear_1
t_embedder.mlp.2 = adaln_single.emb.timestep_embedder.linear_2
csize_embedder.mlp.0 = adaln_single.emb.resolution_embedder.linear_1
csize_embedder.mlp.2 = adaln_single.emb.resolution_embedder.linear_2
ar_embedder.mlp.0 = adaln_single.emb.aspect_ratio_embedder.linear_1
ar_embedder.mlp.2 = adaln_single.emb.aspect_ratio_embedder.linear_2
t_block.1 = adaln_single.linear
final_layer.linear = proj_out
blocks.# = transformer_blocks.#:
  attn.qkv = attn1.to_q + attn1.to_k + attn1.to_v
  attn.proj = attn1.to_out.0
  cross_attn.q_linear = attn2.to_q
  cross_attn.kv_linear = attn2.to_k + attn2.to_v
  cross_attn.proj = attn2.to_out.0
  mlp.fc1 = ff.net.0.proj
  mlp.fc2 = ff.net.2
"""),
    diffusers_reads="",
    comfyui_reads=also(
        *(f"{p} * diffusers" for p in ("transformer.", "base_model.model.", "unet.?"))
    ),
    text=("t5xxl",),
    widths={"attn1.to_q": (1152,), "attn2.to_q": (1152,)},
    depths={"transformer_blocks": 28},
    base_version="pixart",
    architecture="pixart-sigma/lora",
    programs=(),
    linear=("to_q", "to_k", "to_v", "to_out.0", ".net.0.proj", ".net.2"),
)
SANA = Family(
    name="Sana",
    table=Table("""
patch_embed.proj
time_embed.emb.timestep_embedder.linear_1
time_embed.emb.timestep_embedder.linear_2
time_embed.linear
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
  ff.conv_inverted
  ff.conv_depth
  ff.conv_point
"""),
    comfyui_reads="",
    text=("gemma2_2b",),
    widths={"attn1.to_q": (1152, 2240)},
    depths={"transformer_blocks": 60},
    base_version="sana",
    architecture="sana/lora",
    programs=(),
    linear=("to_q", "to_k", "to_v", "to_out.0"),
    pointwise=("ff.conv_inverted", "ff.conv_point", "patch_embed.proj"),
)
