"""A base model's pipeline, from a folder, the hub or a single checkpoint file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from lorasynth.base.families import BASE_MODELS, BaseFamily, family_of
from lorasynth.base.outline import outlined_pipeline
from lorasynth.base.pipeline_files import classes_of, load_pipeline, read_description
from lorasynth.base.single_file import load_checkpoint
from lorasynth.core.errors import BaseModelError
from lorasynth.core.places import repository

if TYPE_CHECKING:
    from lorasynth.base.model import BaseModel

#: In tokens, where a text encoder has no limit of its own.
_LONGEST_TEXT = 4096


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


def check_tokenizers(base: "BaseModel") -> None:
    """Refuse a pipeline whose tokenizers are not those of its text encoders.

    Raises:
        BaseModelError: one is not.
    """
    # Without its files transformers makes a tokenizer that knows no words, in silence.
    for name, part in base.text_parts.items():
        tokenizer, config = getattr(base.pipeline, name), base.text_encoders[part].config
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor for images, too
        config = config.get_text_config()
        known = 0 if tokenizer is None else len(tokenizer)
        length = 0 if tokenizer is None else tokenizer.model_max_length
        longest = getattr(config, "max_position_embeddings", _LONGEST_TEXT)
        # T5's table of embeddings has a few rows more than there are words.
        # Tokenizers of language models have limits beyond those of any model, or none.
        limited = config.model_type.startswith(("clip", "t5")) and length > longest
        if known < 0.99 * config.vocab_size or limited:
            raise BaseModelError(
                f"a base model's {name} must be that of its {part} ({config.vocab_size} tokens, "
                f"texts of {longest}), but that of {base.name} has {known} and texts of {length}: "
                f"is its folder {name}/ complete?"
            )


def format_of(part: Any, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a part: in float16 T5 and Gemma overflow; an autoencoder may."""
    if dtype != torch.float16:
        return dtype
    if getattr(part.config, "force_upcast", False):
        return torch.float32
    overflow = getattr(part.config, "model_type", "") in ("t5", "umt5", "gemma2")
    return torch.bfloat16 if overflow else dtype
