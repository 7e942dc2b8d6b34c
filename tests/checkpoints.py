"""Pipelines as one file in the layout that their authors publish, which diffusers converts back."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}

_Z_IMAGE = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}


def stable_diffusion(pipeline: Any, path: Path) -> None:
    """Stable Diffusion 1.5, four levels deep, in CompVis's layout."""
    found: dict[str, Tensor] = {}
    for name, value in pipeline.unet.state_dict().items():
        found[f"model.diffusion_model.{_unet(name)}"] = value
    for name, value in pipeline.vae.state_dict().items():
        new = _vae(name, len(pipeline.vae.config.block_out_channels))
        flat = "mid.attn" in new and value.dim() == 2
        found[f"first_stage_model.{new}"] = value[:, :, None, None] if flat else value
    for name, value in pipeline.text_encoder.state_dict().items():
        inner = name.removeprefix("text_model.")
        found[f"cond_stage_model.transformer.text_model.{inner}"] = value
    save_file({name: value.contiguous().clone() for name, value in found.items()}, path)


def _unet(name: str) -> str:
    for ours, theirs in _OUTER.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    side, rest = name.split(".", 1)
    if side == "mid_block":
        part = re.match(r"\w+\.\d", rest)
        assert part is not None
        return _resnet(f"middle_block.{_MIDDLE[part[0]]}{rest[part.end() :]}", part[0])
    level, kind, number, inner = rest.split(".", 3)
    i, j = int(level), int(number)
    if kind == "downsamplers":
        return f"input_blocks.{3 * (i + 1)}.0.op.{inner.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.{inner}"
    place = 3 * i + j + 1 if side == "down_blocks" else 3 * i + j
    block = "input_blocks" if side == "down_blocks" else "output_blocks"
    return _resnet(f"{block}.{place}.{int(kind == 'attentions')}.{inner}", kind)


def _resnet(name: str, kind: str) -> str:
    if not kind.startswith("resnets"):
        return name
    for ours, theirs in _RESNET.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _vae(name: str, levels: int) -> str:
    for ours, theirs in _VAE.items():
        name = name.replace(f"{ours}.", f"{theirs}.")

    def up(match: re.Match[str]) -> str:
        return f"up.{levels - 1 - int(match[1])}."

    name = re.sub(r"up_blocks\.(\d)\.", up, name).replace("down_blocks.", "down.")
    name = name.replace("resnets.", "block.")
    return re.sub(r"(down|up)samplers\.0", r"\1sample", name)


def z_image(pipeline: Any, path: Path) -> None:
    """The denoiser of Z-Image, with queries, keys and values in one layer."""
    state = dict(pipeline.transformer.state_dict())
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".to_k." in name or ".to_v." in name:
            continue
        if ".to_q." in name:
            rows = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            found[name.replace("to_q", "qkv")] = torch.cat(rows)
            continue
        for ours, theirs in _Z_IMAGE.items():
            name = name.replace(ours, theirs)
        found[name] = value
    save_file({name: value.contiguous().clone() for name, value in found.items()}, path)
