"""kohya: keys `lora_unet_<module>.lora_down.weight`, read by ComfyUI, A1111 and diffusers.

Module names have their dots replaced by underscores (see `_kohya_names`).  Reading restores them
from the names that diffusers gives to parts of a model; a file of ours whose names are not all of
that kind carries them in its header.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lorasynth.adapter.adapter import Adapter
from lorasynth.adapter.components import component_of
from lorasynth.adapter.factors import Factor, pad_rank
from lorasynth.adapter.families import SDXL, Family, family_of, is_transformer
from lorasynth.adapter.files._fused import fuse, separate
from lorasynth.adapter.files._kohya_names import (
    TEXT_PREFIXES,
    Fused,
    dotted,
    from_flux,
    from_original,
    to_flux,
    to_original,
    underscored,
)
from lorasynth.adapter.files._pairs import Naming, Pair, pairs_of, read_pairs, spell
from lorasynth.adapter.files._safetensors import (
    from_header,
    read_tensors,
    to_header,
    weights_file,
    write_tensors,
)
from lorasynth.adapter.files.contract import FORMATS, LoraFile, LoraFormat
from lorasynth.errors import FileFormatError

_UNET = "lora_unet_"
_NAMING = Naming(
    # OneTrainer writes `lora_transformer_` with diffusers' names.
    prefixes={_UNET: "", "lora_transformer_": "", **TEXT_PREFIXES},
    down=".lora_down.weight",
    up=".lora_up.weight",
    downs=r"\.lora_down\.weight",
    ups=r"\.lora_up\.weight",
)
_MODULES_KEY = "lorasynth.modules"


@FORMATS.register("kohya")
class KohyaFormat(LoraFormat):
    """The most widely read single file."""

    def recognises(self, keys: Collection[str]) -> bool:
        """Keys begin with `lora_unet_` or `lora_te` and end with `lora_down.weight`."""
        return _NAMING.recognises(keys)

    def open(self, path: Path) -> LoraFile:
        """Read a file; a module without `.alpha` has alpha = rank, as in kohya's own scripts."""
        content = read_tensors(weights_file(path))
        metadata = from_header(content.header)
        if not metadata.trigger_phrase:
            phrase = content.header.get("modelspec.trigger_phrase", "")
            metadata = replace(metadata, trigger_phrase=phrase)
        modules_of = _modules_of(content.path, _listed(content.header, path))
        return read_pairs(content, _NAMING, metadata, modules_of=modules_of)

    def write(self, adapter: Adapter, path: Path) -> Path:
        """Write a single file.

        All modules of a U-Net have the highest rank of the adapter: diffusers 0.42 drops the alphas
        of attention modules when they differ (its pattern has the names of another format), so
        lower ranks are padded by zeros.

        Raises:
            FileFormatError: `path` does not end with `.safetensors`, or two module names differ
                by dots and underscores only.
        """
        target = self.target(path)
        family = family_of(adapter.layout)
        pairs = _spelled(adapter, family)
        if not is_transformer(adapter.factors):
            rank = max(pair.factor.rank for pair in pairs.values())
            pairs = {n: replace(p, factor=pad_rank(p.factor, rank)) for n, p in pairs.items()}
        tensors: dict[str, Tensor] = {}
        for name, pair in pairs.items():
            tensors.update(spell(_NAMING, name, pair))
            tensors[f"{name}.alpha"] = torch.tensor(float(pair.factor.rank))
        write_tensors(target, tensors, _header(adapter, family))
        return target


# Writing


def _spelled(adapter: Adapter, family: Family | None) -> dict[str, Pair]:
    """What the file holds, by the name of its layer there."""
    pairs = pairs_of(adapter)
    inside = [module for module in pairs if not component_of(module)]
    layers = to_flux(inside) if is_transformer(inside) else None
    spelled: dict[str, Pair] = {}
    for name, layer in (layers or {}).items():
        spelled[_UNET + name] = _fused(layer, pairs)
    for module, pair in pairs.items():
        if layers is not None and not component_of(module):
            continue
        name = _name(module, family)
        if name in spelled:
            raise FileFormatError(
                f"kohya writes dots as underscores, but then {module} has the name of another "
                "module: choose another format"
            )
        spelled[name] = pair
    return spelled


def _name(module: str, family: Family | None) -> str:
    component = component_of(module)
    if not component:
        return _UNET + underscored(to_original(module) if family is SDXL else module)
    # A second text encoder is what makes the first one have a number.
    numbered = family is None or family.text_encoders > 1 or component != "text_encoder"
    prefixes = {encoder: prefix for prefix, encoder in TEXT_PREFIXES.items() if numbered}
    prefix = prefixes.get(f"{component}.", "lora_te_")
    return prefix + underscored(module.removeprefix(f"{component}."))


def _fused(layer: Fused, pairs: Mapping[str, Pair]) -> Pair:
    parts = [pairs[module].factor if module in pairs else None for module in layer.modules]
    [width] = {part.in_features for part in parts if part is not None}
    if layer.shares:
        return Pair(fuse(parts, [share * width for share in layer.shares]))
    [factor] = (part for part in parts if part is not None)
    return Pair(_swap_halves(factor) if layer.swapped else factor)


def _header(adapter: Adapter, family: Family | None) -> dict[str, str]:
    rank = str(max(factor.rank for factor in adapter.factors.values()))
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "modelspec.trigger_phrase": adapter.metadata.trigger_phrase,
        **to_header(adapter.metadata),
    }
    if family:
        header["ss_network_module"] = family.network_module
        header["ss_base_model_version"] = family.base_version
        header["modelspec.architecture"] = family.architecture
    modules = [module for module in adapter.factors if not component_of(module)]
    if to_flux(modules) is None and any(dotted(underscored(m)) != m for m in modules):
        header[_MODULES_KEY] = json.dumps(modules)
    return header


# Reading


def _listed(header: Mapping[str, str], path: Path) -> dict[str, str]:
    """Underscored name -> module, of those that the header lists."""
    try:
        listed = json.loads(header.get(_MODULES_KEY, "[]"))
        return {underscored(module): module for module in listed}
    except (ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"the header entry {_MODULES_KEY} must be a JSON list of names, but in {path} it is not"
        ) from error


def _modules_of(path: Path, listed: Mapping[str, str]) -> Callable[[str, Pair], Mapping[str, Pair]]:
    def modules_of(name: str, pair: Pair) -> Mapping[str, Pair]:
        component = component_of(name)
        if component:
            prefix = f"{component}."
            return {prefix + dotted(name.removeprefix(prefix)): pair}
        if name in listed:
            return {listed[name]: pair}
        layer = from_flux(name)
        if layer is None:
            return {from_original(name) or dotted(name): pair}
        return _separated(path, name, layer, pair)

    return modules_of


def _separated(path: Path, name: str, layer: Fused, pair: Pair) -> Mapping[str, Pair]:
    if not layer.shares:
        [module] = layer.modules
        return {module: replace(pair, factor=_swap_halves(pair.factor)) if layer.swapped else pair}
    rows = [share * pair.factor.in_features for share in layer.shares]
    if sum(rows) != pair.factor.out_features:
        raise FileFormatError(
            f"{name} must have {sum(rows)} rows, those of {', '.join(layer.modules)}, but in "
            f"{path} it has {pair.factor.out_features}"
        )
    parts = zip(layer.modules, separate(pair.factor, rows), strict=True)
    return {module: Pair(part) for module, part in parts if part is not None}


def _swap_halves(factor: Factor) -> Factor:
    first, second = factor.B.chunk(2)
    return Factor(factor.A, torch.cat([second, first]))
