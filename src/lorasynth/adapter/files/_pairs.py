"""From the keys of a file to the factors of modules, with every contradiction named."""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.factors import Factor
from lorasynth.adapter.files._safetensors import Content
from lorasynth.errors import FileFormatError, LayoutError

#: Part of a key -> the kind of adapter that it betrays; none of these is B·A alone.
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lora_mid": "LoCon with a Tucker core",
    "oft_": "OFT",
    "boft_": "BOFT",
    "ia3_": "IA3",
    "vera_lambda": "VeRA",
    "lora_embedding_": "a LoRA on embeddings",
    "lora_B.bias": "a LoRA with biases",
    "lora_up.bias": "a LoRA with biases",
}


@dataclass(frozen=True)
class Naming:
    """How a format spells the key of a module's A, B and alpha."""

    prefix: str
    down: str
    up: str
    alpha: str = ".alpha"

    def split(self, key: str) -> tuple[str, str] | None:
        """(module, suffix) of a key, or None if it is not spelled so."""
        if not key.startswith(self.prefix):
            return None
        for suffix in (self.down, self.up, self.alpha):
            if key.endswith(suffix):
                return key[len(self.prefix) : -len(suffix)], suffix
        return None

    def spell(self, module: str, factor: Factor) -> dict[str, Tensor]:
        """Keys and tensors of a module's A and B."""
        return {
            f"{self.prefix}{module}{self.down}": factor.A,
            f"{self.prefix}{module}{self.up}": factor.B,
        }


def refuse_other_kinds(path: Path, keys: Iterable[str]) -> None:
    """Name what a file is if it is an adapter, but not a plain LoRA.

    Raises:
        FileFormatError: it is of another kind.
    """
    for key in keys:
        for part, kind in _OTHER_KINDS.items():
            if part in key:
                raise FileFormatError(
                    f"only plain LoRA (B·A) can be read, but {path} is {kind} (key {key}): convert "
                    "it to a LoRA with the program that made it"
                )


def _rank_is_alpha(module: str, rank: int) -> float:  # noqa: ARG001
    return float(rank)


def read_pairs(
    content: Content,
    naming: Naming,
    metadata: AdapterMetadata,
    *,
    module_of: Callable[[str], str] = str,
    alpha_of: Callable[[str, int], float] = _rank_is_alpha,
) -> Adapter:
    """Join A, B and alpha of each module into an adapter.

    Args:
        content: The file.
        naming: How its keys are spelled.
        metadata: Goes into the adapter.
        module_of: Module name of the spelled one.
        alpha_of: Alpha of a module and its rank if the file has no key for it.

    Raises:
        FileFormatError: a key is unknown, a partner is missing, shapes contradict, a number is
            not finite, or the file is another kind of adapter.
    """
    refuse_other_kinds(content.path, content.tensors)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in content.tensors.items():
        split = naming.split(key)
        if split is None:
            raise FileFormatError(
                f"every key of a LoRA file must be {naming.prefix}<module>{naming.down} or its "
                f"partners, but {content.path} has {key}: only LoRA on the U-Net can be read"
            )
        parts.setdefault(split[0], {})[split[1]] = tensor
    factors = {}
    for name in sorted(parts):
        factor = _factor(content.path, name, parts[name], naming)
        module = module_of(name)
        alpha = parts[name].get(naming.alpha)
        scale = _scale(
            content.path, name, alpha_of(module, factor.rank) if alpha is None else alpha, factor
        )
        factors[module] = _fold(factor, scale)
    try:
        return Adapter(factors, metadata)
    except LayoutError as error:
        raise FileFormatError(f"{content.path} cannot be used: {error}") from error


def _factor(path: Path, name: str, part: dict[str, Tensor], naming: Naming) -> Factor:
    for suffix, other in ((naming.down, naming.up), (naming.up, naming.down)):
        if suffix not in part:
            found = other if other in part else naming.alpha
            raise FileFormatError(
                f"every module of a LoRA file must have both its factors, but {path} has "
                f"{naming.prefix}{name}{found} without its partner {suffix}"
            )
    factor = Factor(part[naming.down], part[naming.up])
    a, b = tuple(factor.A.shape), tuple(factor.B.shape)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in a + b:
        raise FileFormatError(
            f"{naming.down[1:]} must be (r, in) and {naming.up[1:]} (out, r) with r at least 1, "
            f"but {name} in {path} has {a} and {b}"
        )
    return factor


def _scale(path: Path, name: str, alpha: Tensor | float, factor: Factor) -> float:
    if isinstance(alpha, Tensor) and alpha.numel() != 1:
        raise FileFormatError(
            f"alpha must be one number, but {name} in {path} has {tuple(alpha.shape)} of them"
        )
    value = float(alpha)
    if not math.isfinite(value):
        raise FileFormatError(f"alpha must be finite, but {name} in {path} has {value}")
    return value / factor.rank


def _fold(factor: Factor, scale: float) -> Factor:
    """Fold a scale into B; in float32 at least, since half precision could overflow."""
    if scale == 1:
        return factor
    dtype = torch.promote_types(factor.B.dtype, torch.float32)
    return Factor(factor.A.to(dtype), factor.B.to(dtype) * scale)


def has_key(keys: Collection[str], naming: Naming) -> bool:
    """Whether some key is spelled like a factor in this naming."""
    return any(
        key.startswith(naming.prefix) and key.endswith((naming.down, naming.up)) for key in keys
    )
