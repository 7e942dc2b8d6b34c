"""kohya: keys `lora_unet_<module>.lora_down.weight`, read by ComfyUI, A1111 and diffusers.

Module names have their dots replaced by underscores.  Reading restores them from the names that
diffusers gives to parts of a U-Net; a file of ours whose names are not all of that kind carries
them in its header.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lorasynth.adapter.adapter import Adapter
from lorasynth.adapter.factors import Factors, pad_rank
from lorasynth.adapter.files._pairs import Naming, has_key, read_pairs
from lorasynth.adapter.files._safetensors import (
    from_header,
    read_tensors,
    to_header,
    weights_file,
    write_tensors,
)
from lorasynth.adapter.files.contract import FORMATS, LoraFormat
from lorasynth.errors import FileFormatError

_NAMING = Naming("lora_unet_", ".lora_down.weight", ".lora_up.weight")
_MODULES_KEY = "lorasynth.modules"

#: Parts of a diffusers U-Net's module names that contain an underscore themselves.
_COMPOUND_PARTS = (
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "time_emb_proj"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2", "conv_in", "conv_out"),
    *("conv_shortcut", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
_PART = re.compile(rf"(?:{'|'.join(_COMPOUND_PARTS)}|[^_]+)(?=_|$)")

#: Width of the text embedding -> (ss_base_model_version, modelspec.architecture).
_ARCHITECTURES = {
    768: ("sd_v1", "stable-diffusion-v1/lora"),
    1024: ("sd_v2", "stable-diffusion-v2-768-v/lora"),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
}


@FORMATS.register("kohya")
class KohyaFormat(LoraFormat):
    """The most widely read single file."""

    def recognises(self, keys: Collection[str]) -> bool:
        """Keys begin with `lora_unet_` and end with `lora_down.weight`."""
        return has_key(keys, _NAMING)

    def read(self, path: Path) -> Adapter:
        """Read a file; a module without `.alpha` has alpha = rank, as in kohya's own scripts."""
        content = read_tensors(weights_file(path))
        metadata = from_header(content.header)
        if not metadata.trigger_phrase:
            phrase = content.header.get("modelspec.trigger_phrase", "")
            metadata = replace(metadata, trigger_phrase=phrase)
        return read_pairs(content, _NAMING, metadata, module_of=_dotted(content.header, path))

    def write(self, adapter: Adapter, path: Path) -> Path:
        """Write a single file, in which all modules have the highest rank of the adapter.

        diffusers 0.42 drops the alphas of attention modules when they differ (its pattern has the
        names of another format), so lower ranks are padded by zeros.

        Raises:
            FileFormatError: `path` does not end with `.safetensors`, or two module names differ
                by dots and underscores only.
        """
        if path.suffix != ".safetensors":
            raise FileFormatError(f"a kohya file must be named *.safetensors, but got {path}")
        tensors: dict[str, Tensor] = {}
        rank = max(factor.rank for factor in adapter.factors.values())
        for module, factor in adapter.factors.items():
            spelled = _NAMING.spell(_underscored(module), pad_rank(factor, rank))
            if not spelled.keys().isdisjoint(tensors):
                raise FileFormatError(
                    f"kohya writes dots as underscores, but then {module} has the name of another "
                    "module: choose another format"
                )
            tensors.update(spelled)
            alpha_key = f"{_NAMING.prefix}{_underscored(module)}{_NAMING.alpha}"
            tensors[alpha_key] = torch.tensor(float(rank))
        write_tensors(path, tensors, _header(adapter, rank))
        return path


def _underscored(module: str) -> str:
    return module.replace(".", "_")


def _guess(name: str) -> str:
    return ".".join(_PART.findall(name))


def _dotted(header: Mapping[str, str], path: Path) -> Callable[[str], str]:
    """Module name of an underscored one."""
    try:
        listed = json.loads(header.get(_MODULES_KEY, "[]"))
        known = {_underscored(module): module for module in listed}
    except (ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"the header entry {_MODULES_KEY} must be a JSON list of names, but in {path} it is not"
        ) from error
    return lambda name: known.get(name) or _guess(name)


def _header(adapter: Adapter, rank: int) -> dict[str, str]:
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "modelspec.trigger_phrase": adapter.metadata.trigger_phrase,
        **to_header(adapter.metadata),
    }
    architecture = _architecture(adapter.factors)
    if architecture:
        header["ss_base_model_version"], header["modelspec.architecture"] = architecture
    if any(_guess(_underscored(module)) != module for module in adapter.factors):
        header[_MODULES_KEY] = json.dumps(list(adapter.factors))
    return header


def _architecture(factors: Factors) -> tuple[str, str] | None:
    """Told by the width of the text embedding; None for other base models, or without it."""
    widths = {
        factor.in_features
        for module, factor in factors.items()
        if module.endswith(("attn2.to_k", "attn2.to_v"))
    }
    return _ARCHITECTURES.get(widths.pop()) if len(widths) == 1 else None
