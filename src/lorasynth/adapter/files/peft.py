"""PEFT: a folder with `adapter_config.json` and `adapter_model.safetensors`."""

import json
from collections.abc import Collection
from pathlib import Path

from typing_extensions import override

from lorasynth.adapter.adapter import Adapter
from lorasynth.adapter.components import DENOISER, component_of
from lorasynth.adapter.files._pairs import Naming, pairs_of, read_pairs, spell
from lorasynth.adapter.files._peft_config import alpha_from, lora_config
from lorasynth.adapter.files._safetensors import (
    from_header,
    read_tensors,
    to_header,
    weights_file,
    write_tensors,
)
from lorasynth.adapter.files.contract import FORMATS, LoraFile, LoraFormat
from lorasynth.atomic import atomic_directory
from lorasynth.config import read_json
from lorasynth.errors import ConfigError, FileFormatError

# The name of the adapter is in a key where a module's own state was saved, as by weights2weights
# (`.lora_A.identity1.weight`).
_NAMING = Naming(
    prefixes={"base_model.model.": ""},
    down=".lora_A.weight",
    up=".lora_B.weight",
    downs=r"\.lora_A(\.\w+)?\.weight",
    ups=r"\.lora_B(\.\w+)?\.weight",
)
_CONFIG_NAME = "adapter_config.json"


@FORMATS.register("peft")
class PeftFormat(LoraFormat):
    """What `PeftModel.from_pretrained(unet, folder)` and `save_pretrained` use."""

    suffix = ""

    def recognises(self, keys: Collection[str]) -> bool:
        """Keys begin with `base_model.model.` and end with `lora_A.weight`."""
        return _NAMING.recognises(keys)

    def open(self, path: Path) -> LoraFile:
        """Read a folder, or the weights file in it; the config must be beside it."""
        content = read_tensors(weights_file(path))
        config_path = content.path.parent / _CONFIG_NAME
        try:
            config = read_json(config_path)
        except ConfigError as error:
            raise FileFormatError(
                f"a PEFT adapter needs its configuration, which holds alpha: {error}"
            ) from error
        alpha_of = alpha_from(config, config_path)
        return read_pairs(content, _NAMING, from_header(content.header), alpha_of=alpha_of)

    @override
    def target(self, path: Path) -> Path:
        """The folder `path`.

        Raises:
            FileFormatError: it exists and is something else than a PEFT adapter.
        """
        if path.suffix == ".safetensors" or path.is_file():
            raise FileFormatError(f"a PEFT adapter is a folder, but {path} names a file")
        if path.exists() and any(path.iterdir()) and not (path / _CONFIG_NAME).exists():
            raise FileFormatError(
                f"only an empty folder or an older PEFT adapter is replaced, but {path} holds "
                "other files: choose another folder"
            )
        return path

    def write(self, adapter: Adapter, path: Path) -> Path:
        """Write the folder `path`.

        Raises:
            FileFormatError: `path` is something else, or the adapter changes a text encoder.
        """
        target = self.target(path)
        components = sorted({component_of(module) for module in adapter.factors})
        if components != [DENOISER]:
            raise FileFormatError(
                "a PEFT adapter changes one model, the U-Net or transformer, but this one changes "
                f"{' and '.join(name or 'that' for name in components)}: choose diffusers or kohya"
            )
        tensors = {}
        for module, pair in pairs_of(adapter).items():
            tensors.update(spell(_NAMING, f"base_model.model.{module}", pair))
        config = {"peft_type": "LORA", "inference_mode": True, **lora_config(adapter.factors)}
        with atomic_directory(target) as folder:
            (folder / _CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n")
            write_tensors(
                folder / "adapter_model.safetensors", tensors, to_header(adapter.metadata)
            )
        return target
