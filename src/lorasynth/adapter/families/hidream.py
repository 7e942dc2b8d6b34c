"""HiDream-I1, published in diffusers' names."""

from lorasynth.adapter.families.contract import Family, also
from lorasynth.adapter.names import Table

_FEED_FORWARD = "".join(f"  block.{part}.w{n}\n" for part in (
    "ff_i.shared_experts", "ff_i.experts.#") for n in (1, 2, 3))  # fmt: skip
_ATTENTION = """
  block.adaLN_modulation.1
  block.attn1.to_q
  block.attn1.to_k
  block.attn1.to_v
  block.attn1.to_out
"""

HIDREAM = Family(
    name="HiDream",
    table=Table(f"""
t_embedder.timestep_embedder.linear_1
t_embedder.timestep_embedder.linear_2
p_embedder.pooled_embedder.linear_1
p_embedder.pooled_embedder.linear_2
x_embedder.proj
final_layer.linear
final_layer.adaLN_modulation.1
caption_projection.#.linear
double_stream_blocks.#:{_ATTENTION}
  block.attn1.to_q_t
  block.attn1.to_k_t
  block.attn1.to_v_t
  block.attn1.to_out_t
  block.ff_t.w1
  block.ff_t.w2
  block.ff_t.w3
{_FEED_FORWARD}
single_stream_blocks.#:{_ATTENTION}{_FEED_FORWARD}
"""),
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB diffusers",
    comfyui_reads=also("transformer. * diffusers", "lycoris_ * diffusers"),
    text=("clip_l", "clip_g", "t5xxl", "llama"),
    base_version="hidream",
    architecture="hidream-i1/lora",
)
