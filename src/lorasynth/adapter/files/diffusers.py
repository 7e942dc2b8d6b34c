"""diffusers: `pytorch_lora_weights.safetensors`, keys `unet.<module>.lora_A.weight`.

The LoRA configuration is in the header; without it `load_lora_weights` would lose alpha.
"""

import json
from collections.abc import Collection
from pathlib import Path

from lorasynth.adapter.adapter import Adapter
from lorasynth.adapter.files._pairs import Naming, has_key, read_pairs
from lorasynth.adapter.files._peft_config import alpha_from, lora_config
from lorasynth.adapter.files._safetensors import (
    from_header,
    read_tensors,
    to_header,
    weights_file,
    write_tensors,
)
from lorasynth.adapter.files.contract import FORMATS, LoraFormat
from lorasynth.errors import FileFormatError

_NAMING = Naming("unet.", ".lora_A.weight", ".lora_B.weight")
_CONFIG_KEY = "lora_adapter_metadata"


@FORMATS.register("diffusers")
class DiffusersFormat(LoraFormat):
    """What `pipe.load_lora_weights` and `StableDiffusionPipeline.save_lora_weights` use."""

    def recognises(self, keys: Collection[str]) -> bool:
        """Keys begin with `unet.` and end with `lora_A.weight`."""
        return has_key(keys, _NAMING)

    def read(self, path: Path) -> Adapter:
        """Read a file, or a folder that holds one of the usual name."""
        content = read_tensors(weights_file(path))
        metadata = from_header(content.header)
        if _CONFIG_KEY not in content.header:
            return read_pairs(content, _NAMING, metadata)
        try:
            config = json.loads(content.header[_CONFIG_KEY])
            config = {key.removeprefix(_NAMING.prefix): value for key, value in config.items()}
        except (ValueError, AttributeError) as error:
            raise FileFormatError(
                f"the header entry {_CONFIG_KEY} must be a JSON object, but in {path} it is not"
            ) from error
        return read_pairs(content, _NAMING, metadata, alpha_of=alpha_from(config, path))

    def write(self, adapter: Adapter, path: Path) -> Path:
        """Write a file if `path` ends with `.safetensors`, else one in the folder `path`."""
        target = (
            path if path.suffix == ".safetensors" else path / "pytorch_lora_weights.safetensors"
        )
        tensors = {}
        for module, factor in adapter.factors.items():
            tensors.update(_NAMING.spell(module, factor))
        config = {f"unet.{key}": value for key, value in lora_config(adapter.factors).items()}
        header = {_CONFIG_KEY: json.dumps(config), **to_header(adapter.metadata)}
        write_tensors(target, tensors, header)
        return target
