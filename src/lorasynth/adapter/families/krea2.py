"""Krea 2."""

from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.names import Table

_BLOCK = """
  attn.wq = attn.to_q
  attn.wk = attn.to_k
  attn.wv = attn.to_v
  attn.wo = attn.to_out.0
  attn.gate = attn.to_gate
  mlp.gate = ff.gate
  mlp.up = ff.up
  mlp.down = ff.down
"""

KREA2 = Family(
    name="Krea 2",
    table=Table(f"""
first = img_in
last.linear = final_layer.linear
tmlp.0 = time_embed.linear_1
tmlp.2 = time_embed.linear_2
tproj.1 = time_mod_proj
txtmlp.1 = txt_in.linear_1
txtmlp.3 = txt_in.linear_2
txtfusion.projector = text_fusion.projector
blocks.# = transformer_blocks.#:{_BLOCK}
txtfusion.layerwise_blocks.# = text_fusion.layerwise_blocks.#:{_BLOCK}
txtfusion.refiner_blocks.# = text_fusion.refiner_blocks.#:{_BLOCK}
"""),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB published; "
    "base_model.model. AB published",
    text=("qwen3_4b",),
    widths={"transformer_blocks.attn.to_q": (6144,)},
    ratios={"transformer_blocks.attn.to_k": 1 / 4, "transformer_blocks.attn.to_v": 1 / 4},
    depths={"transformer_blocks": 28},
    base_version="krea2",
    architecture="krea-2/lora",
    programs=("ai-toolkit",),
)
