"""A base model's pipeline, from a folder, the hub or a single checkpoint file."""

from pathlib import Path
from typing import Any

import diffusers

from lorasynth.base.families import BASE_MODELS, BaseFamily, family_of
from lorasynth.base.outline import outlined_pipeline
from lorasynth.base.pipeline_files import classes_of, load_pipeline, read_description
from lorasynth.base.single_file import load_checkpoint
from lorasynth.core.errors import BaseModelError
from lorasynth.core.places import repository


def open_pipeline(name: str, *, outlined: bool = False) -> Any:
    """Load the pipeline of a base model, every part in the format that it is stored in.

    Args:
        name: folder of the pipeline, hub:owner/name, or a checkpoint file.
        outlined: read the configurations alone; networks are on the meta device.

    Raises:
        BaseModelError: it is not whole, is damaged, or is of a kind that is not known.
    """
    if repository(name) is None and Path(name).is_file():
        pipeline = load_checkpoint(Path(name))  # only then its modules are known
    else:
        row = _row_of(name)
        kind = getattr(diffusers, row.pipeline)
        _refuse_parts(name)
        left_out = {**row.left_out, **_lacking(name, row)}
        pipeline = (
            outlined_pipeline(name, kind) if outlined else load_pipeline(name, kind, left_out)
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _lacking(name: str, row: BaseFamily) -> dict[str, None]:
    """The optional parts that a folder states not to have."""
    return dict.fromkeys(set(row.optional) - classes_of(name).keys())


def _row_of(name: str) -> BaseFamily:
    """The family of a pipeline, by what its `model_index.json` says."""
    stated = str(read_description(name, "model_index.json").get("_class_name"))
    row = family_of(stated)
    if row is None:
        raise BaseModelError(
            f"a base model must be a {', '.join(BASE_MODELS.names())}, but {name} is a {stated}: "
            "choose another one, or add a row to lorasynth.base.families (entry point "
            f"{BASE_MODELS.group!r})"
        )
    return row


def _refuse_parts(name: str) -> None:
    """Refuse, by their configurations, what would be found out after hours of fetching."""
    parts = classes_of(name)
    if "transformer_2" in parts:
        raise BaseModelError(
            f"a base model must have one denoiser, but {name} has two, for high and low noise "
            "(Wan 2.2 A14B): use Wan 2.1 or Wan 2.2 5B"
        )
    for part in parts:
        if not part.startswith(("unet", "transformer", "vae", "text_encoder")):
            continue
        config = read_description(name, f"{part}/config.json")
        if quantised := config.get("quantization_config"):
            how = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else ""
            raise BaseModelError(
                f"a base model's weights must not be quantised, but {part} of {name} is ({how}): "
                "use the model in bfloat16 or float16, with --quantize for less memory"
            )
