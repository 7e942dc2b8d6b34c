"""The files of a diffusers pipeline: its JSON descriptions, and its parts in memory as stored."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache

from lorasynth.base.quiet import without_bars
from lorasynth.errors import BaseModelError

#: Number formats in the headers of safetensors files.
_FORMATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def read_description(name: str, file: str) -> dict[str, Any]:
    """Read a JSON object of a pipeline, such as `model_index.json`.

    Args:
        name: folder or hub id of the pipeline.
        file: path inside it.

    Raises:
        BaseModelError: there is no such file, or it holds something else.
    """
    local = Path(name)
    if not local.exists() and "/" not in name:
        raise BaseModelError(
            f"a base model must be a pipeline folder, or a hub id as owner/name, but {name!r} is "
            "neither: check the path"
        )
    try:
        path = local / file if local.exists() else Path(hf_hub_download(name, file))
        value = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise BaseModelError(
            f"a base model must be a pipeline folder or hub id with {file}, but {name} cannot be "
            f"loaded ({_first_line(error)})"
        ) from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{file} of {name} must hold a JSON object, but does not")
    return value


def weights_here(name: str, part: str) -> list[Path]:
    """The safetensors files of a pipeline's network that are on this disk, without asking the hub.

    Args:
        name: folder or hub id of the pipeline.
        part: the network's name in it.
    """
    if Path(name).is_dir():
        folder = Path(name) / part
    else:
        found = try_to_load_from_cache(name, f"{part}/config.json")
        if not isinstance(found, str):
            return []
        folder = Path(found).parent
    return _weight_files(folder)


def _weight_files(folder: Path) -> list[Path]:
    # Variants, such as model.fp16.safetensors, are not what is loaded.
    return sorted(path for path in folder.glob("*.safetensors") if path.name.count(".") == 1)


def load_pipeline(name: str, pipeline_class: type[Any], left_out: Mapping[str, Any]) -> Any:
    """Load a pipeline, every part in the number format that it is stored in.

    So nothing is lost before a fingerprint is taken, and no more memory is used than the files.

    Args:
        name: folder or hub id.
        pipeline_class: of diffusers.
        left_out: arguments that say which parts are not loaded.

    Raises:
        BaseModelError: a part is missing or damaged, or parts do not fit each other.
    """
    try:
        with without_bars():
            folder = name
            if not Path(name).is_dir():
                folder = pipeline_class.download(name, use_safetensors=True, **left_out)
            return pipeline_class.from_pretrained(
                folder,
                dtype={"default": torch.float32, **_stored_formats(Path(folder))},
                local_files_only=True,
                use_safetensors=True,
                **left_out,
            )
    except Exception as error:
        raise BaseModelError(
            f"a base model must be a whole {pipeline_class.__name__} (folder or hub id), but "
            f"{name} cannot be loaded ({_first_line(error)})"
        ) from error


def _stored_formats(folder: Path) -> dict[str, torch.dtype]:
    """Part -> the one number format of its tensors; parts of several are left to the default."""
    formats = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = set().union(*map(_formats_in, _weight_files(part)))
        if len(found) == 1 and (stated := found.pop()) in _FORMATS:
            formats[part.name] = _FORMATS[stated]
    return formats


def _formats_in(path: Path) -> set[str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
