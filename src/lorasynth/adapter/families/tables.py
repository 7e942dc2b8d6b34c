"""All families, which `families.toml` lists; the tables of U-Nets are made of their shapes."""

import tomllib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.resources import files
from typing import Any

from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.names import Table, expanded

_DATA = tomllib.loads(files(__package__).joinpath("families.toml").read_text(encoding="utf-8"))
#: The layers of text encoders, by their kinds, that files with underscores name.
TEXT_TABLES = {kind: Table(rows) for kind, rows in _DATA.pop("text-encoders").items()}
_PARTS: dict[str, str] = _DATA.pop("unet-parts")
_UNETS: dict[str, Any] = _DATA.pop("unets")


def _unet(down: Sequence[int], up: Sequence[int], added: bool = False) -> str:
    """The table of a U-Net with 2 residual layers in a down block, and 3 in an up block.

    Args:
        down: whether the block at each resolution on the way down has attention.
        up: the same on the way up.
        added: whether there is an embedding beside that of the time.
    """
    resnet, attention = _PARTS["resnet"], _PARTS["attention"]
    blocks = [(f"middle_block.{2 * n} = mid_block.resnets.{n}", resnet) for n in (0, 1)]
    blocks.append(("middle_block.1 = mid_block.attentions.0", attention))
    for way, attending, first, layers in (("down", down, 1, 2), ("up", up, 0, 3)):
        side = "input_blocks" if way == "down" else "output_blocks"
        for level, attends in enumerate(attending):
            block = f"{way}_blocks.{level}"
            for layer in range(layers):
                place = f"{side}.{3 * level + layer + first}"
                blocks.append((f"{place}.0 = {block}.resnets.{layer}", resnet))
                if attends:
                    blocks.append((f"{place}.1 = {block}.attentions.{layer}", attention))
            if way == "down":
                place = f"{side}.{3 * level + 3}.0 = {block}.downsamplers.0"
                blocks.append((place, "\n  op = conv\n"))
            else:  # behind the residual layer and its attention
                place = f"{side}.{3 * level + 2}.{1 + attends} = {block}.upsamplers.0"
                blocks.append((place, "\n  conv\n"))
    outside = _PARTS["outside"] + (_PARTS["added"] if added else "")
    return outside + "\n".join(f"{names}:\n{rows}" for names, rows in blocks)


def _family(key: str, facts: dict[str, Any]) -> Family:
    facts = _UNETS | facts if key == "other-unet" or "unet" in facts else facts
    table = _unet(**facts.pop("unet")) if "unet" in facts else facts.pop("table")
    made: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()
    }
    for name, convert in (("widths", tuple), ("ratios", lambda ratio: float(Fraction(ratio)))):
        stated = facts.get(name, {})
        made[name] = {end: convert(v) for ends, v in stated.items() for end in expanded(ends)}
    if facts.get("comfyui_reads") is False:
        made["comfyui_reads"] = None
    return Family(key=key, table=Table(table), **made)


_ALL = {key: _family(key, facts) for key, facts in _DATA.items()}
#: U-Nets of other shapes.
OTHER_UNET = _ALL.pop("other-unet")
#: By the names that `--family` takes.
FAMILIES: Mapping[str, Family] = _ALL
FLUX1, SD2 = FAMILIES["flux1"], FAMILIES["sd2"]
