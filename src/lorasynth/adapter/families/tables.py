"""All families, which `families.toml` lists; the tables of U-Nets are made of their shapes."""

import tomllib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.resources import files
from typing import Any

from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.names import Table, expanded

_RESNET = """
  {in_layers.2,out_layers.3,emb_layers.1} = {conv1,conv2,time_emb_proj}
  skip_connection = conv_shortcut
"""
_ATTENTION = """
  proj_{in,out}
  transformer_blocks.#.attn{1,2}.to_{q,k,v,out.0}
  transformer_blocks.#.ff.net.{0.proj,2}
"""
_OUTSIDE = """
input_blocks.0.0 = conv_in
time_embed.{0,2} = time_embedding.linear_{1,2}
out.2 = conv_out
"""
_ADDED = "label_emb.0.{0,2} = add_embedding.linear_{1,2}\n"


def _unet(down: Sequence[int], up: Sequence[int], added: bool = False) -> str:
    """The table of a U-Net with 2 residual layers in a down block, and 3 in an up block.

    Args:
        down: whether the block at each resolution on the way down has attention.
        up: the same on the way up.
        added: whether there is an embedding beside that of the time.
    """
    blocks = [(f"middle_block.{2 * n} = mid_block.resnets.{n}", _RESNET) for n in (0, 1)]
    blocks.append(("middle_block.1 = mid_block.attentions.0", _ATTENTION))
    for way, attending, first, layers in (("down", down, 1, 2), ("up", up, 0, 3)):
        side = "input_blocks" if way == "down" else "output_blocks"
        for level, attends in enumerate(attending):
            block = f"{way}_blocks.{level}"
            for layer in range(layers):
                place = f"{side}.{3 * level + layer + first}"
                blocks.append((f"{place}.0 = {block}.resnets.{layer}", _RESNET))
                if attends:
                    blocks.append((f"{place}.1 = {block}.attentions.{layer}", _ATTENTION))
            if way == "down":
                place = f"{side}.{3 * level + 3}.0 = {block}.downsamplers.0"
                blocks.append((place, "\n  op = conv\n"))
            else:  # behind the residual layer and its attention
                place = f"{side}.{3 * level + 2}.{1 + attends} = {block}.upsamplers.0"
                blocks.append((place, "\n  conv\n"))
    rows = "\n".join(f"{names}:{rows}" for names, rows in blocks)
    return f"{_OUTSIDE}{_ADDED if added else ''}{rows}"


def _family(key: str, facts: dict[str, Any]) -> Family:
    table = _unet(**facts.pop("unet")) if "unet" in facts else facts.pop("table")
    made = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()}
    for name, convert in (("widths", tuple), ("ratios", lambda ratio: float(Fraction(ratio)))):
        stated = facts.get(name, {})
        made[name] = {end: convert(v) for ends, v in stated.items() for end in expanded(ends)}
    if facts.get("comfyui_reads") is False:
        made["comfyui_reads"] = None
    return Family(key=key, table=Table(table), **made)


_ALL = {
    key: _family(key, facts)
    for key, facts in tomllib.loads(
        files(__package__).joinpath("families.toml").read_text(encoding="utf-8")
    ).items()
}
#: U-Nets of other shapes.
OTHER_UNET = _ALL.pop("other-unet")
#: By the names that `--family` takes.
FAMILIES: Mapping[str, Family] = _ALL
FLUX1, SD2 = FAMILIES["flux1"], FAMILIES["sd2"]
