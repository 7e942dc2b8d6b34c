"""PEFT's LoraConfig as JSON values, which both PEFT folders and diffusers' headers carry.

Written by hand rather than by `peft.LoraConfig`, so that saving a file does not import peft.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorasynth.adapter.factors import Factors
from lorasynth.core.config import read_json
from lorasynth.core.errors import ConfigError, FileFormatError, quoted

_TEXT_MODEL = "text_model."

#: Initialisations that change the base model's weights too, so that B·A is not the update.
_SHIFTED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
#: Options that make something else than B·A of the two factors, where they are set.
_OTHER_OPTIONS = {
    "use_dora": "DoRA",
    "lora_bias": "a LoRA with biases",
    "alora_invocation_tokens": "an activated LoRA",
    "layer_replication": "a LoRA of replicated layers",
    "trainable_token_indices": "a LoRA with trained tokens",
    "fan_in_fan_out": "a LoRA of transposed weights",
    "modules_to_save": "a LoRA with whole modules",
}
_KNOWN_USES = {"use_rslora", "use_dora"}

#: A name of layers, perhaps with escaped dots: what nearly all patterns are.
_LITERAL = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?")
#: What other patterns may be made of; no group is repeated, so no match takes exponential time.
_SAFE = re.compile(r"\^?(?:[\w|()-]|\\[.dw]|\.|\[[\w-]+\]|(?<!\))(?<![*+])[*+])+\$?")
_MOST_REPEATS = 3
_LONGEST_NAME = 300
#: Seconds that all patterns of one file may take.
_PATIENCE = 1.0

AlphaOf = Callable[[str, int], float]


def lora_config(factors: Factors) -> dict[str, Any]:
    """The fields that say rank, alpha (always the rank) and modules, of factors of one rank.

    The layer `text_model` of CLIP, which transformers 5 took out, is left out of the names: PEFT
    then finds them by their last parts, with it and without.
    """
    rank = next(iter(factors.values())).rank
    modules = sorted(module.removeprefix(_TEXT_MODEL) for module in factors)
    patterns: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    return {"r": rank, "lora_alpha": rank, **patterns, "target_modules": modules}


def parse_config(text: str, what: str) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        FileFormatError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{what} must be a JSON object, but is not ({type(error).__name__})"
        ) from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{what} must be a JSON object, but is not")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The configuration beside PEFT's weights.

    Raises:
        FileFormatError: it is missing, too large, or none.
    """
    try:
        return read_json(path)
    except ConfigError as error:
        raise FileFormatError(f"a configuration must be a readable JSON object: {error}") from error


def alpha_from(config: Mapping[str, Any], path: Path, *, dora: bool = False) -> AlphaOf:
    """Alpha of a module and its rank, as PEFT would read it from a config; `dora`: of DoRA too.

    Raises:
        FileFormatError: the config is of another kind of adapter, or has no usable alpha.
    """
    refuse_other_kinds({**config, "use_dora": False} if dora else config, path)
    find = _of_module(config, "lora_alpha", "alpha_pattern", path)
    rank_stabilised = bool(config.get("use_rslora"))

    def alpha_of(module: str, rank: int) -> float:
        alpha = find(module)
        # Rank-stabilised LoRA divides by the root of the rank (Kalajdzievski 2023).
        return alpha * rank**0.5 if rank_stabilised else alpha

    return alpha_of


def scale_from(config: Mapping[str, Any], path: Path) -> Callable[[str], float]:
    """Alpha / r of a module, as PEFT would read it from the config of LoHa or LoKr.

    Raises:
        FileFormatError: the config is of another kind of adapter, or has no usable numbers.
    """
    if (kind := config.get("peft_type")) not in ("LOHA", "LOKR"):
        raise FileFormatError(
            f"a PEFT folder of LoHa or LoKr must say so, but the peft_type of {path} is "
            f"{quoted(kind)}: give it the configuration that was saved with it"
        )
    alpha_of = _of_module(config, "alpha", "alpha_pattern", path)
    rank_of = _of_module(config, "r", "rank_pattern", path)

    def scale_of(module: str) -> float:
        if not (rank := rank_of(module)) > 0:
            raise FileFormatError(f"a rank must be positive, but {path} has {rank:g}")
        return alpha_of(module) / rank

    return scale_of


def _of_module(
    config: Mapping[str, Any], usual: str, pattern: str, path: Path
) -> Callable[[str], float]:
    """A number of each module, by the first pattern that fits its name, else the usual one."""
    default = _number(config.get(usual), path)
    stated = config.get(pattern) or {}
    if not isinstance(stated, Mapping):
        raise FileFormatError(
            f"{pattern} must map names to numbers, but {path} has {quoted(stated)}"
        )
    find = _finder({str(key): _number(value, path) for key, value in stated.items()}, path)

    def of_module(module: str) -> float:
        found = find(module)
        return default if found is None else found

    return of_module


def refuse_other_kinds(config: Mapping[str, Any], path: Path) -> None:
    """Name what else than B·A a configuration makes of the factors.

    Raises:
        FileFormatError: it makes something else.
    """
    kinds = [kind for option, kind in _OTHER_OPTIONS.items() if config.get(option)]
    kinds += ["a LoRA with biases"] if config.get("bias", "none") not in ("none", None) else []
    kinds += [
        f"a LoRA with {option}"
        for option, value in config.items()
        if option.startswith("use_") and option not in _KNOWN_USES and value
    ]
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        kinds.insert(0, str(kind)[:50])
    initial = str(config.get("init_lora_weights", "")).lower()
    if initial.startswith(_SHIFTED_BASE):
        raise FileFormatError(
            f"B·A must be the update of the base model as published, but {path} was initialised by "
            f"{initial[:50]}, which changes the base model too: save it in PEFT with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    if kinds:
        raise FileFormatError(
            f"only plain LoRA (B·A) can be read, but {path} is {kinds[0]}: merge it "
            "into the base model and use `lorasynth extract`"
        )


def _number(value: object, path: Path) -> float:
    found = quoted(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            found = "one that is too large"
    raise FileFormatError(f"rank, alpha and their patterns must be numbers, but {path} has {found}")


def _finder(pattern: Mapping[str, float], path: Path) -> Callable[[str], float | None]:
    """PEFT's rule: the first pattern that matches the whole name or its last parts."""
    names: dict[str, tuple[int, float]] = {}
    others: list[tuple[int, re.Pattern[str], float]] = []
    for order, (key, alpha) in enumerate(pattern.items()):
        if _LITERAL.fullmatch(key):
            names.setdefault(key.removesuffix("$").replace("\\", ""), (order, alpha))
        else:
            others.append((order, _compiled(key, path), alpha))
    spent = 0.0

    def find(module: str) -> float | None:
        nonlocal spent
        parts = module[:_LONGEST_NAME].split(".")
        ends = [f"^{module}", *(".".join(parts[start:]) for start in range(len(parts)))]
        found = [names[end] for end in ends if end in names]
        start = time.monotonic()
        for order, expression, alpha in others:
            if len(module) > _LONGEST_NAME or spent > _PATIENCE:
                raise FileFormatError(
                    f"alpha_pattern must be names of layers, but that of {path} has expressions "
                    "that take too long to match: convert it with the program that made it"
                )
            if expression.match(module):
                found.append((order, alpha))
            spent += time.monotonic() - start
            start = time.monotonic()
        return min(found)[1] if found else None

    return find


def _compiled(key: str, path: Path) -> re.Pattern[str]:
    plain = re.sub(r"\\.|\[[^\]]*\]", "", key)
    if len(key) <= _LONGEST_NAME and _SAFE.fullmatch(key):
        repeats = plain.count("*") + plain.count("+")
        try:
            if repeats <= _MOST_REPEATS:
                return re.compile(rf"(.*\.)?({key})$")
        except re.error:
            pass
    raise FileFormatError(
        f"alpha_pattern must be names of layers or plain expressions, but {path} has "
        f"{key[:60]!r}: write the names out"
    )
