"""Ideogram 4."""

from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.names import Table

_LAYERS_ONLY = "all !input_proj !llm_cond_proj !t_embedding !adaln_proj !final_layer"

IDEOGRAM4 = Family(
    name="Ideogram 4",
    table=Table("""
input_proj
llm_cond_proj
t_embedding.mlp_in
t_embedding.mlp_out
adaln_proj
final_layer.linear
final_layer.adaln_modulation
layers.#:
  attention.qkv = attention.to_q + attention.to_k + attention.to_v
  attention.o = attention.to_out.0
  feed_forward.w1
  feed_forward.w2
  feed_forward.w3
  adaln_modulation
"""),
    universal="comfyui",
    diffusers_reads=f"transformer. AB diffusers; diffusion_model. AB published {_LAYERS_ONLY}; "
    f"diffusion_model. du published {_LAYERS_ONLY}",
    text=("qwen",),
    widths={"attention.to_q": (4608,), "attention.to_out.0": (4608,), "feed_forward.w1": (4608,)},
    ratios={f"attention.{part}": 1 for part in ("to_q", "to_k", "to_v", "to_out.0")},
    depths={"layers": 34},
    base_version="ideogram4",
    architecture="ideogram-4/lora",
    programs=("ai-toolkit",),
)
