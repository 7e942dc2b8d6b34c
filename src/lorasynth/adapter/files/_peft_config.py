"""PEFT's LoraConfig as JSON values, which both PEFT folders and diffusers' headers carry.

Written by hand rather than by `peft.LoraConfig`, so that saving a file does not import peft.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorasynth.adapter.factors import Factors
from lorasynth.errors import FileFormatError

_TEXT_MODEL = "text_model."


def lora_config(factors: Factors) -> dict[str, Any]:
    """The fields that say rank, alpha (always the rank) and target modules.

    The layer `text_model` of CLIP, which transformers 5 took out, is left out of the names: PEFT
    then finds them by their last parts, with it and without.
    """
    ranks = {module.removeprefix(_TEXT_MODEL): factor.rank for module, factor in factors.items()}
    [(common, _)] = Counter(ranks.values()).most_common(1)
    start = "" if any(module.startswith(_TEXT_MODEL) for module in factors) else "^"
    pattern = {f"{start}{module}": rank for module, rank in ranks.items() if rank != common}
    return {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
    }


def alpha_from(config: Mapping[str, Any], path: Path) -> Callable[[str, int], float]:
    """Alpha of a module and its rank, as PEFT would read it from a config.

    Raises:
        FileFormatError: the config is of another kind of adapter, or has no usable alpha.
    """
    if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config["peft_type"]
        raise FileFormatError(f"only plain LoRA (B·A) can be read, but {path} is {kind}")
    default: Any = config.get("lora_alpha")
    pattern: Any = config.get("alpha_pattern") or {}
    alphas = [default, *pattern.values()] if isinstance(pattern, Mapping) else [None]
    if not all(isinstance(alpha, int | float) for alpha in alphas):
        raise FileFormatError(
            f"lora_alpha and alpha_pattern must be numbers, but {path} has {default!r}, {pattern!r}"
        )

    def alpha_of(module: str, rank: int) -> float:
        matching = (alpha for key, alpha in pattern.items() if _matches(key, module))
        alpha = float(next(matching, default))
        # Rank-stabilised LoRA divides by the root of the rank (Kalajdzievski 2023).
        return alpha * rank**0.5 if config.get("use_rslora") else alpha

    return alpha_of


def _matches(pattern: str, module: str) -> bool:
    """PEFT's rule: the pattern matches the whole name or its last parts."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return False
