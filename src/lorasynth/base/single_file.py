"""A base model in one `.safetensors` file, as checkpoints are shared, without the network.

diffusers tells the kind of model by the names of the tensors and converts them; sizes and the
tokenizers, which are not in the file, come from a pipeline folder: one beside the file that has its
name, or the kind's published one in the hub's cache.  Of a file that holds the denoiser alone, as
those of most transformers do, the other parts come from that folder, too.
"""

from pathlib import Path
from typing import Any

import diffusers
import safetensors
import torch
from diffusers.loaders import single_file_utils
from huggingface_hub import try_to_load_from_cache

from lorasynth.base.families import BaseFamily, family_of
from lorasynth.base.pipeline_files import classes_of, load_pipeline, without_bars
from lorasynth.core.config import read_json
from lorasynth.core.errors import BaseModelError
from lorasynth.core.weights import require_small_header

_INDEX = "model_index.json"

#: Types of numbers that are converted; others are quantised.
_FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_V1 = "model.diffusion_model.input_blocks.0.0.weight"
_AUTOENCODER = ("first_stage_model.", "vae.")
_VIDEO = ("wan", "ltx", "hunyuan-video", "mochi", "cosmos", "animatediff", "skyreels")


def load_checkpoint(path: Path) -> Any:
    """Load a pipeline from one file.

    Args:
        path: of the file.

    Raises:
        BaseModelError: it is no whole checkpoint of a known family, is quantised, or its
            configurations are not here.
    """
    if path.suffix != ".safetensors":
        raise BaseModelError(
            f"a base model in one file must be a .safetensors checkpoint, but {path} is not: "
            "pickles (.ckpt, .pt) and quantised weights (.gguf) are not read"
        )
    shapes, formats = _header(path)
    _refuse_others(path, shapes, formats)
    kind = single_file_utils.infer_diffusers_model_type(shapes)
    if kind == "v1" and _V1 not in shapes:  # what diffusers says of whatever it does not know
        raise BaseModelError(
            f"a base model in one file must be of a kind that diffusers knows, but {path} is not: "
            "use the model's pipeline folder"
        )
    configs = _configs(path, kind)
    stated = str(read_json(configs / _INDEX).get("_class_name"))
    row = family_of(stated)
    if row is None:
        raise BaseModelError(
            f"a checkpoint must be of a known family, but the folder with the configurations of "
            f"{path} is of a {stated}: see docs/basemodels.md"
        )
    whole = any(name.startswith(_AUTOENCODER) for name in shapes)
    try:
        with without_bars():
            return (_whole if whole else _denoiser)(path, configs, row, _whole_format(formats))
    except BaseModelError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"a base model in one file must be a {row.pipeline} or its denoiser, but {path} cannot "
            f"be loaded ({reason}): use the model's pipeline folder"
        ) from error


def _whole(path: Path, configs: Path, row: BaseFamily, dtype: torch.dtype) -> Any:
    """A pipeline of which all networks are in the file."""
    pipeline_class: Any = getattr(diffusers, row.pipeline)
    return pipeline_class.from_single_file(
        str(path), config=str(configs), local_files_only=True, dtype=dtype, **row.left_out
    )


def _denoiser(path: Path, configs: Path, row: BaseFamily, dtype: torch.dtype) -> Any:
    """A pipeline of a folder, whose denoiser is in the file."""
    parts = classes_of(str(configs))
    [part] = parts.keys() & {"unet", "transformer"}
    network: Any = getattr(diffusers, parts[part][1])
    made = network.from_single_file(
        str(path), config=str(configs), subfolder=part, local_files_only=True, torch_dtype=dtype
    )
    kept = {**row.left_out, part: made}
    return load_pipeline(str(configs), getattr(diffusers, row.pipeline), kept)


def _header(path: Path) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Each tensor's shape, as one without memory, and the dtypes of all."""
    try:
        require_small_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {
                name: torch.empty(part.get_shape(), device="meta") for name, part in slices.items()
            }
            return shapes, {part.get_dtype() for part in slices.values()}
    except (OSError, safetensors.SafetensorError) as error:
        raise BaseModelError(
            f"a base model in one file must be a whole safetensors file, but {path} is not "
            f"({error})"
        ) from error


def _refuse_others(path: Path, shapes: dict[str, torch.Tensor], formats: set[str]) -> None:
    if any("lora_" in name or name.endswith(".lora_A.weight") for name in shapes):
        raise BaseModelError(
            f"a base model must be a checkpoint, but {path} is a LoRA file: give it where a LoRA "
            "file is asked for"
        )
    scaled = [name for name in shapes if name.endswith(("weight_scale", "scale_weight", "absmax"))]
    if scaled or not formats <= _FORMATS.keys():
        named = ", ".join(sorted(formats - _FORMATS.keys())) or scaled[0]
        raise BaseModelError(
            f"a base model's weights must not be quantised, but those of {path} are ({named}): "
            "use the checkpoint in float16 or bfloat16"
        )


def _configs(path: Path, kind: str) -> Path:
    """The folder with the configurations and tokenizers of a kind of checkpoint."""
    beside = path.with_suffix("")
    if (beside / _INDEX).is_file():
        return beside
    if kind.startswith(_VIDEO):
        raise BaseModelError(
            f"a base model must make images, but {path} is a video model's checkpoint ({kind}): "
            "use the pipeline folder of a model of one of the families in docs/basemodels.md"
        )
    known = single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind, {})
    repository = known.get("pretrained_model_name_or_path", "")
    cached = try_to_load_from_cache(repository, _INDEX) if repository else None
    if isinstance(cached, str):
        return Path(cached).parent
    raise BaseModelError(
        f"a checkpoint's configurations and tokenizers must be here, but those of {path} ({kind}) "
        f"are not: put the model's pipeline folder at {beside} (without weights, if the file has "
        f"all of them), or run `hf download {repository or 'owner/name'}` once"
    )


def _whole_format(formats: set[str]) -> torch.dtype:
    """The format that holds all numbers of a file."""
    floating = {_FORMATS[name] for name in formats} - {torch.int64, torch.int32}
    return floating.pop() if len(floating) == 1 else torch.float32
