"""Stable Diffusion 3 and 3.5."""

from lorasynth.adapter.families.contract import Family, also
from lorasynth.adapter.names import Table

SD3 = Family(
    name="Stable Diffusion 3",
    table=Table("""
x_embedder.proj = pos_embed.proj
context_embedder
t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 ~ norm_out.linear
joint_blocks.# = transformer_blocks.#:
  x_block.adaLN_modulation.1 = norm1.linear
  x_block.attn.qkv = attn.to_q + attn.to_k + attn.to_v
  x_block.attn.proj = attn.to_out.0
  x_block.attn2.qkv = attn2.to_q + attn2.to_k + attn2.to_v
  x_block.attn2.proj = attn2.to_out.0
  x_block.mlp.fc1 = ff.net.0.proj
  x_block.mlp.fc2 = ff.net.2
  context_block.adaLN_modulation.1 ~ norm1_context.linear
  context_block.attn.qkv = attn.add_q_proj + attn.add_k_proj + attn.add_v_proj
  context_block.attn.proj = attn.to_add_out
  context_block.mlp.fc1 = ff_context.net.0.proj
  context_block.mlp.fc2 = ff_context.net.2
"""),
    comfyui_reads=also(
        *(
            f"{p} * diffusers"
            for p in ("transformer.", "base_model.model.", "lora_transformer_", "lycoris_")
        )
    ),
    text=("clip_l", "clip_g", "t5xxl"),
    widths={"attn.to_q": (1536, 2432), "attn.add_q_proj": (1536, 2432)},
    ratios={"attn.to_q": 1, "ff.net.0.proj": 4, "ff_context.net.0.proj": 4},
    depths={"transformer_blocks": 38},
    base_version="sd3",
    architecture="stable-diffusion-3/lora",
    network_module="networks.lora_sd3",
    linear=("norm1.linear", "to_q", "to_k", "to_v", "_proj", "to_out.0", ".proj", "net.2"),
)
