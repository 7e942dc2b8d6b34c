"""diffusers: `pytorch_lora_weights.safetensors`, keys `unet.<module>.lora_A.weight`.

A transformer's modules begin with `transformer.`, those of text encoders with `text_encoder.` or
`text_encoder_2.`.  The LoRA configuration is in the header; without it `load_lora_weights` would
lose alpha.  Older spellings (`.lora.down.weight`, `.processor.to_q_lora.down.weight`) are read.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from lorasynth.adapter.adapter import Adapter
from lorasynth.adapter.components import DENOISER, TEXT_ENCODERS, component_of, split
from lorasynth.adapter.families import is_transformer
from lorasynth.adapter.files._pairs import Naming, Pair, pairs_of, read_pairs, spell
from lorasynth.adapter.files._peft_config import alpha_from, lora_config
from lorasynth.adapter.files._safetensors import (
    from_header,
    read_tensors,
    to_header,
    weights_file,
    write_tensors,
)
from lorasynth.adapter.files.contract import FORMATS, LoraFile, LoraFormat
from lorasynth.errors import FileFormatError

_DENOISERS = ("unet.", "transformer.")
_NAMING = Naming(
    prefixes=dict.fromkeys(_DENOISERS, "") | {f"{name}.": f"{name}." for name in TEXT_ENCODERS},
    down=".lora_A.weight",
    up=".lora_B.weight",
    downs=r"\.lora_A(\.\w+)?\.weight|[._]lora(_linear_layer)?\.down\.weight",
    ups=r"\.lora_B(\.\w+)?\.weight|[._]lora(_linear_layer)?\.up\.weight",
)
_CONFIG_KEY = "lora_adapter_metadata"

#: Names of layers that old versions gave to their LoRAs -> names of the layers.
_OLD_NAMES = {
    ".processor.to_out": ".to_out.0",
    ".processor.": ".",
    ".self_attn.to_q": ".self_attn.q_proj",
    ".self_attn.to_k": ".self_attn.k_proj",
    ".self_attn.to_v": ".self_attn.v_proj",
    ".self_attn.to_out": ".self_attn.out_proj",
}


@FORMATS.register("diffusers")
class DiffusersFormat(LoraFormat):
    """What `pipe.load_lora_weights` and `StableDiffusionPipeline.save_lora_weights` use."""

    def recognises(self, keys: Collection[str]) -> bool:
        """Keys begin with a part of a pipeline and end with `lora_A.weight`."""
        return _NAMING.recognises(keys)

    def open(self, path: Path) -> LoraFile:
        """Read a file, or a folder that holds one of the usual name."""
        content = read_tensors(weights_file(path))
        metadata = from_header(content.header)
        if _CONFIG_KEY not in content.header:
            return read_pairs(content, _NAMING, metadata, modules_of=_renamed)
        try:
            config = json.loads(content.header[_CONFIG_KEY])
            parts = {part: _of_part(config, part) for part in (DENOISER, *TEXT_ENCODERS)}
        except (ValueError, AttributeError) as error:
            raise FileFormatError(
                f"the header entry {_CONFIG_KEY} must be a JSON object, but in {path} it is not"
            ) from error
        alpha_of = _alpha_of_parts(parts, path)
        return read_pairs(content, _NAMING, metadata, modules_of=_renamed, alpha_of=alpha_of)

    @override
    def target(self, path: Path) -> Path:
        """A file whose name ends with `.safetensors`, or that of the usual name in a folder.

        Raises:
            FileFormatError: the name has another ending, and there is no such folder.
        """
        if path.suffix == self.suffix:
            return path
        if path.suffix and not path.is_dir():
            raise FileFormatError(
                f"a diffusers file must be named *{self.suffix}, or be in a folder whose name has "
                f"no ending, but got {path}"
            )
        return path / "pytorch_lora_weights.safetensors"

    def write(self, adapter: Adapter, path: Path) -> Path:
        """Write a file, or one in a folder: see `target`."""
        target = self.target(path)
        denoiser = _DENOISERS[is_transformer(adapter.factors)]
        tensors = {}
        for module, pair in pairs_of(adapter).items():
            stem = module if component_of(module) else denoiser + module
            tensors.update(spell(_NAMING, stem, pair))
        config = {
            f"{component or denoiser[:-1]}.{key}": value
            for component, factors in split(adapter.factors).items()
            for key, value in lora_config(factors).items()
        }
        header = {_CONFIG_KEY: json.dumps(config), **to_header(adapter.metadata)}
        write_tensors(target, tensors, header)
        return target


def _renamed(name: str, pair: Pair) -> Mapping[str, Pair]:
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return {name: pair}


def _of_part(config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The configuration of one part of the pipeline, with the part's name taken off its keys."""
    prefixes = (f"{component}.",) if component else _DENOISERS
    return {
        key.removeprefix(prefix): value
        for prefix in prefixes
        for key, value in config.items()
        if key.startswith(prefix)
    }


def _alpha_of_parts(parts: Mapping[str, dict[str, Any]], path: Path) -> Callable[[str, int], float]:
    rules = {part: alpha_from(config, path) for part, config in parts.items() if config}

    def alpha_of(module: str, rank: int) -> float:
        component = component_of(module)
        inside = module.removeprefix(f"{component}.") if component else module
        return rules[component](inside, rank) if component in rules else float(rank)

    return alpha_of
