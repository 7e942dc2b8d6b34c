"""Lumina Image 2.0, and Z-Image, which was published under the same names."""

from lorasynth.adapter.families.contract import Family, also
from lorasynth.adapter.names import Table


def _blocks(layers: str, modulation: str) -> str:
    """Rows of the three stacks of blocks, of which the one for the text is not modulated."""
    return "".join(
        f"{stack}.#:\n{layers}" + ("" if stack == "context_refiner" else modulation)
        for stack in ("layers", "noise_refiner", "context_refiner")
    )


LUMINA2 = Family(
    name="Lumina 2",
    table=Table("""
x_embedder
cap_embedder.1 = time_caption_embed.caption_embedder.1
t_embedder.mlp.0 = time_caption_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_caption_embed.timestep_embedder.linear_2
final_layer.adaLN_modulation.1 = norm_out.linear_1
final_layer.linear = norm_out.linear_2
""" + _blocks("""
  attention.qkv = 3*attn.to_q + attn.to_k + attn.to_v
  attention.out = attn.to_out.0
  feed_forward.w1 = feed_forward.linear_1
  feed_forward.w2 = feed_forward.linear_2
  feed_forward.w3 = feed_forward.linear_3
""", "  adaLN_modulation.1 = norm1.linear\n")),
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB published blocks !x_embedder "
    "!time_caption_embed. !norm_out.",
    text=("gemma2_2b",),
    widths={"attn.to_q": (2304,), "attn.to_out.0": (2304,), "feed_forward.linear_1": (2304,)},
    ratios={"attn.to_q": 1, "attn.to_k": 1 / 3, "attn.to_v": 1 / 3, "attn.to_out.0": 1},
    depths={"layers": 26, "noise_refiner": 2, "context_refiner": 2},
    base_version="lumina2",
    architecture="lumina-2/lora",
    network_module="networks.lora_lumina",
)  # fmt: skip
Z_IMAGE = Family(
    name="Z-Image",
    table=Table("""
x_embedder = all_x_embedder.2-1
cap_embedder.1
t_embedder.mlp.0
t_embedder.mlp.2
final_layer.linear = all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 = all_final_layer.2-1.adaLN_modulation.1
""" + _blocks("""
  attention.qkv = attention.to_q + attention.to_k + attention.to_v
  attention.out = attention.to_out.0
  feed_forward.w1
  feed_forward.w2
  feed_forward.w3
""", "  adaLN_modulation.0\n")),
    comfyui="diffusers",
    universal="comfyui",
    diffusers_reads="transformer. AB diffusers; diffusion_model. AB diffusers; "
    "diffusion_model. du diffusers; lora_unet_ du diffusers -all_; lora_unet_ du published -all_; "
    "diffusion_model. du published -*.to_q -*.to_k -*.to_v; bare du diffusers; "
    "bare default diffusers",
    comfyui_reads=also("diffusion_model. * diffusers", "lycoris_ * diffusers"),
    text=("qwen3_4b",),
    widths={"attention.to_q": (3840,), "attention.to_out.0": (3840,), "feed_forward.w1": (3840,)},
    ratios={f"attention.{part}": 1 for part in ("to_q", "to_k", "to_v", "to_out.0")},
    depths={"layers": 30, "noise_refiner": 2, "context_refiner": 2},
    base_version="z_image",
    architecture="z-image/lora",
    network_module="networks.lora_zimage",
)  # fmt: skip
