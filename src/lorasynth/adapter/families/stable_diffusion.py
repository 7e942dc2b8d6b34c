"""Stable Diffusion 1, 2 and XL: U-Nets, of which XL's published names are kohya's."""

from lorasynth.adapter.families.contract import Family, also
from lorasynth.adapter.names import Table

_RESNET = """
  in_layers.2 = conv1
  out_layers.3 = conv2
  emb_layers.1 = time_emb_proj
  skip_connection = conv_shortcut
"""
_ATTENTION = """
  proj_in
  proj_out
""" + "".join(
    f"  transformer_blocks.#.{layer}\n"
    for layer in (
        *(f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
        *("ff.net.0.proj", "ff.net.2"),
    )
)
_OUTSIDE = """
input_blocks.0.0 = conv_in
time_embed.0 = time_embedding.linear_1
time_embed.2 = time_embedding.linear_2
out.2 = conv_out
"""
_ADDED = """
label_emb.0.0 = add_embedding.linear_1
label_emb.0.2 = add_embedding.linear_2
"""
#: Residual layers of a down block; an up block has one more.
_LAYERS = 2


def _unet(down: list[int], up: list[int], outside: str = _OUTSIDE) -> Table:
    """The table of a U-Net.

    Args:
        down: whether the block at each resolution on the way down has attention.
        up: the same on the way up.
        outside: rows of the layers outside the blocks.
    """
    blocks: list[tuple[str, str, str]] = []
    for level, attends in enumerate(down):
        for layer in range(_LAYERS):
            place, block = f"input_blocks.{3 * level + layer + 1}", f"down_blocks.{level}"
            blocks.append((f"{place}.0", f"{block}.resnets.{layer}", _RESNET))
            if attends:
                blocks.append((f"{place}.1", f"{block}.attentions.{layer}", _ATTENTION))
        sampler = f"down_blocks.{level}.downsamplers.0"
        blocks.append((f"input_blocks.{3 * level + 3}.0", sampler, "\n  op = conv\n"))
    blocks += [(f"middle_block.{2 * n}", f"mid_block.resnets.{n}", _RESNET) for n in (0, 1)]
    blocks.append(("middle_block.1", "mid_block.attentions.0", _ATTENTION))
    for level, attends in enumerate(up):
        for layer in range(_LAYERS + 1):
            place, block = f"output_blocks.{3 * level + layer}", f"up_blocks.{level}"
            blocks.append((f"{place}.0", f"{block}.resnets.{layer}", _RESNET))
            if attends:
                blocks.append((f"{place}.1", f"{block}.attentions.{layer}", _ATTENTION))
        inner = 2 if attends else 1  # behind the residual layer and its attention
        sampler = f"up_blocks.{level}.upsamplers.0"
        blocks.append((f"output_blocks.{3 * level + 2}.{inner}", sampler, "\n  conv\n"))
    rows = [f"{published} = {ours}:{layers}" for published, ours, layers in blocks]
    return Table(outside + "\n".join(rows))


_LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj")
_PROJECTIONS = (".proj_in", ".proj_out")
_SPATIAL = (".conv1", ".conv2", ".conv_in", ".conv_out", "samplers.0.conv")
_FIRST = _unet([1, 1, 1, 0], [0, 1, 1, 1])
_DIFFUSERS = "unet. AB diffusers; unet. old diffusers; lora_unet_ du diffusers"
_SGM = "unet. AB diffusers; unet. old diffusers; lora_unet_ du published; lora_unet_ du diffusers"
_ATTENTION_LAYERS = " ".join(f"-*.to_{part}" for part in ("q", "k", "v", "out.0"))
_COMFYUI = also(
    "lora_unet_ * diffusers",
    "lycoris_ * diffusers",
    *(f"{prefix} * diffusers {_ATTENTION_LAYERS}" for prefix in ("unet.", "bare")),
)
_PROGRAMS = ("kohya", "a1111", "ai-toolkit")

SD1 = Family(
    name="Stable Diffusion 1",
    table=_FIRST,
    kohya="diffusers",
    universal="kohya",
    denoiser="unet",
    diffusers_reads=_DIFFUSERS,
    comfyui_reads=_COMFYUI,
    text=("clip_l",),
    widths={"attn2.to_k": (768,), "attn2.to_v": (768,)},
    depths={"transformer_blocks": 1},
    base_version="sd_v1",
    architecture="stable-diffusion-v1/lora",
    resolution="512x512",
    programs=_PROGRAMS,
    spatial=_SPATIAL,
    linear=_LINEAR,
    pointwise=_PROJECTIONS,
)
SD2 = Family(
    name="Stable Diffusion 2",
    table=_FIRST,
    kohya="diffusers",
    universal="kohya",
    denoiser="unet",
    diffusers_reads=_DIFFUSERS,
    comfyui_reads=_COMFYUI,
    text=("clip_h",),
    widths={"attn2.to_k": (1024,), "attn2.to_v": (1024,)},
    depths={"transformer_blocks": 1},
    base_version="sd_v2",
    architecture="stable-diffusion-v2-768-v/lora",
    resolution="768x768",
    programs=_PROGRAMS,
    spatial=_SPATIAL,
    linear=(*_LINEAR, *_PROJECTIONS),
)
SDXL = Family(
    name="Stable Diffusion XL",
    table=_unet([0, 1, 1], [1, 1, 0], _OUTSIDE + _ADDED),
    universal="kohya",
    denoiser="unet",
    diffusers_reads=_SGM,
    comfyui_reads=_COMFYUI,
    text=("clip_l", "clip_g"),
    widths={"attn2.to_k": (2048,), "attn2.to_v": (2048,)},
    depths={"transformer_blocks": 10},
    base_version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base/lora",
    programs=_PROGRAMS,
    spatial=_SPATIAL,
    linear=(*_LINEAR, *_PROJECTIONS),
)
#: U-Nets of other shapes, which have no published names: any block may attend, at any depth.
OTHER_UNET = Family(
    name="a U-Net of another family",
    table=Table(
        "conv_in\nconv_out\n"
        + "".join(f"{name}_embedding.linear_{n}\n" for name in ("time", "add") for n in (1, 2))
        + "\n".join(
            f"{block}.resnets.#:\n  conv1\n  conv2\n  time_emb_proj\n  conv_shortcut\n"
            f"{block}.attentions.#:{_ATTENTION}  to_q\n  to_k\n  to_v\n  to_out.0\n"
            f"{block}.downsamplers.#:\n  conv\n{block}.upsamplers.#:\n  conv\n"
            for block in ("down_blocks.#", "up_blocks.#", "mid_block")
        )
    ),
    kohya="diffusers",
    universal="kohya",
    denoiser="unet",
    diffusers_reads=_DIFFUSERS,
    comfyui_reads=_COMFYUI,
    text=("clip_l", "clip_g"),
    programs=(),
    spatial=_SPATIAL,
    linear=_LINEAR,
)  # fmt: skip
