"""kohya's names of layers, in which dots are underscores, and ours.

Stable Diffusion 1 and 2 have diffusers' names there.  SDXL has those of the model that it was
published as (`input_blocks_4_1_...`), FLUX likewise, with q, k and v fused into one layer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: What a text encoder's names begin with -> the text encoder; the last one is written.
TEXT_PREFIXES = {
    "lora_te1_": "text_encoder.",
    "lora_te3_": "text_encoder_2.",  # T5 of FLUX, numbered as in SD3; ComfyUI reads both numbers
    "lora_te2_": "text_encoder_2.",
    "lora_te_": "text_encoder.",
}

#: Parts of names that contain an underscore themselves.
_COMPOUND_PARTS = (
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "time_emb_proj"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2", "conv_in", "conv_out"),
    *("conv_shortcut", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("single_transformer_blocks", "ff_context", "norm1_context", "proj_mlp", "norm_out"),
    *("x_embedder", "context_embedder", "time_text_embed", "timestep_embedder"),
    *("text_embedder", "guidance_embedder"),
    *("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection"),
    *("wi_0", "wi_1"),
)
_PART = re.compile(rf"(?:{'|'.join(sorted(_COMPOUND_PARTS, key=len, reverse=True))}|[^_]+)(?=_|$)")


def underscored(module: str) -> str:
    """A name with its dots replaced."""
    return module.replace(".", "_")


def dotted(name: str) -> str:
    """The name whose dots were replaced, if all of its parts are diffusers' or transformers'."""
    return ".".join(_PART.findall(name))


# SDXL: each of our names has one other.

_RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
#: Residual layers of a down block; an up block has one more.
_LAYERS = 2


def to_original(module: str) -> str:
    """The name that a layer of SDXL's U-Net has in the model as it was published."""
    if module in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[module]
    found = re.fullmatch(
        r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)"
        r"\.(\d+)\.(.+)",
        module,
    )
    if found is None:
        return module
    side, block, kind, layer, rest = found.groups()
    rest = _RESNET_PARTS.get(rest, rest)
    place = int(layer)
    if side is None:
        return f"middle_block.{1 if kind == 'attentions' else 2 * place}.{rest}"
    level = int(block) * (_LAYERS + 1)
    if kind == "downsamplers":
        return f"input_blocks.{level + _LAYERS + 1}.0.op"
    if kind == "upsamplers":  # behind the residual layer and its attention
        return f"output_blocks.{level + _LAYERS}.2.{rest}"
    inner = 1 if kind == "attentions" else 0
    if side == "down":
        return f"input_blocks.{level + place + 1}.{inner}.{rest}"
    return f"output_blocks.{level + place}.{inner}.{rest}"


_ORIGINAL_PARTS = re.compile(
    r"(input_blocks|output_blocks)_(\d+)_(\d+)_(.+)|middle_block_(\d+)_(.+)"
)
_FROM_RESNET = {underscored(theirs): ours for ours, theirs in _RESNET_PARTS.items()}
_FROM_OUTSIDE = {underscored(theirs): ours for ours, theirs in _OUTSIDE_BLOCKS.items()}


def from_original(name: str) -> str | None:
    """Our name of an underscored one that `to_original` gives; None for other names."""
    if name in _FROM_OUTSIDE:
        return _FROM_OUTSIDE[name]
    found = _ORIGINAL_PARTS.fullmatch(name)
    if found is None:
        return None
    side, number, inner, rest, middle, middle_rest = found.groups()
    if side is None:
        kind, place = ("attentions", 0) if middle == "1" else ("resnets", int(middle) // 2)
        return f"mid_block.{kind}.{place}.{_inside(middle_rest)}"
    if side == "input_blocks":
        block, place = divmod(int(number) - 1, _LAYERS + 1)
        if rest == "op":
            return f"down_blocks.{block}.downsamplers.0.conv"
        return f"down_blocks.{block}.{_KINDS[int(inner) > 0]}.{place}.{_inside(rest)}"
    block, place = divmod(int(number), _LAYERS + 1)
    if rest == "conv":
        return f"up_blocks.{block}.upsamplers.0.conv"
    return f"up_blocks.{block}.{_KINDS[int(inner) > 0]}.{place}.{_inside(rest)}"


_KINDS = ("resnets", "attentions")


def _inside(rest: str) -> str:
    return _FROM_RESNET.get(rest) or dotted(rest)


# FLUX: several of our layers may be one of theirs.


@dataclass(frozen=True)
class Fused:
    """One of FLUX's layers as published, and ours that are its rows, one after the other.

    Attributes:
        modules: ours.
        shares: how many rows each has, as a multiple of the layer's input width; empty where there
            is one module.
        swapped: whether the halves of its rows change places.
    """

    modules: tuple[str, ...]
    shares: tuple[int, ...] = ()
    swapped: bool = False


_DOUBLE_BLOCK = {
    "img_attn_qkv": Fused(("attn.to_q", "attn.to_k", "attn.to_v"), (1, 1, 1)),
    "img_attn_proj": Fused(("attn.to_out.0",)),
    "img_mlp_0": Fused(("ff.net.0.proj",)),
    "img_mlp_2": Fused(("ff.net.2",)),
    "img_mod_lin": Fused(("norm1.linear",)),
    "txt_attn_qkv": Fused(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), (1, 1, 1)),
    "txt_attn_proj": Fused(("attn.to_add_out",)),
    "txt_mlp_0": Fused(("ff_context.net.0.proj",)),
    "txt_mlp_2": Fused(("ff_context.net.2",)),
    "txt_mod_lin": Fused(("norm1_context.linear",)),
}
_SINGLE_BLOCK = {
    "linear1": Fused(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), (1, 1, 1, 4)),
    "linear2": Fused(("proj_out",)),
    "modulation_lin": Fused(("norm.linear",)),
}
_OUTSIDE_FLUX = {
    "img_in": Fused(("x_embedder",)),
    "txt_in": Fused(("context_embedder",)),
    "time_in_in_layer": Fused(("time_text_embed.timestep_embedder.linear_1",)),
    "time_in_out_layer": Fused(("time_text_embed.timestep_embedder.linear_2",)),
    "vector_in_in_layer": Fused(("time_text_embed.text_embedder.linear_1",)),
    "vector_in_out_layer": Fused(("time_text_embed.text_embedder.linear_2",)),
    "guidance_in_in_layer": Fused(("time_text_embed.guidance_embedder.linear_1",)),
    "guidance_in_out_layer": Fused(("time_text_embed.guidance_embedder.linear_2",)),
    "final_layer_linear": Fused(("proj_out",)),
    # As published the shift comes first, in diffusers the scale.
    "final_layer_adaLN_modulation_1": Fused(("norm_out.linear",), swapped=True),
}
_BLOCKS = {
    "double_blocks": ("transformer_blocks", _DOUBLE_BLOCK),
    "single_blocks": ("single_transformer_blocks", _SINGLE_BLOCK),
}


def from_flux(name: str) -> Fused | None:
    """What an underscored name of FLUX as published stands for; None for other names."""
    found = re.fullmatch(r"(double_blocks|single_blocks)_(\d+)_(.+)", name)
    if found is None:
        return _OUTSIDE_FLUX.get(name)
    theirs, number, rest = found.groups()
    ours, parts = _BLOCKS[theirs]
    part = parts.get(rest)
    return part and _inside_block(part, f"{ours}.{number}")


def to_flux(modules: Sequence[str]) -> dict[str, Fused] | None:
    """The layers of FLUX as published that some of our modules are of, by underscored name.

    None if one of the modules is not FLUX's.
    """
    names: dict[str, Fused] = {}
    for module in modules:
        found = _to_flux(module)
        if found is None:
            return None
        names[found[0]] = found[1]
    return names


def _to_flux(module: str) -> tuple[str, Fused] | None:
    for theirs, (ours, parts) in _BLOCKS.items():
        found = re.fullmatch(rf"{ours}\.(\d+)\.(.+)", module)
        if found is None:
            continue
        number, rest = found.groups()
        for name, part in parts.items():
            if rest in part.modules:
                return f"{theirs}_{number}_{name}", _inside_block(part, f"{ours}.{number}")
        return None
    return next(((n, part) for n, part in _OUTSIDE_FLUX.items() if module in part.modules), None)


def _inside_block(part: Fused, block: str) -> Fused:
    return Fused(tuple(f"{block}.{name}" for name in part.modules), part.shares, part.swapped)
