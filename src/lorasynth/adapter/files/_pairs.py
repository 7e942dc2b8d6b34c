"""From the keys of a file to the factors of modules, with every contradiction named."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.factors import Factor
from lorasynth.adapter.files._safetensors import Content
from lorasynth.adapter.files.contract import LoraFile
from lorasynth.adapter.layout import Kernel
from lorasynth.errors import FileFormatError, LayoutError

#: What occurs in a key -> the kind of adapter that it betrays; none of these is B·A alone.
_OTHER_KINDS = {
    re.compile(pattern): kind
    for pattern, kind in {
        r"dora_scale|lora_magnitude_vector": "DoRA",
        r"hada_[wt]": "LoHa",
        r"lokr_[wt]": "LoKr",
        r"lora_mid": "LoCon with a Tucker core",
        r"boft_": "BOFT",
        r"oft_": "OFT",
        r"ia3_|\.on_input$": "IA3",
        r"vera_lambda": "VeRA",
        r"lora_E$|ranknum$": "PEFT's AdaLoRA",
        r"\.[ab][12]\.weight$": "GLoRA",
        r"lora_embedding_": "a LoRA on embeddings",
        r"lora_(B|up)(\.\w+)?\.bias$": "a LoRA with biases",
        r"\.[wb]_norm$": "a LoRA with trained norms",
        r"modules_to_save": "a LoRA with whole modules",
        r"\.diff(_b)?$": "a difference of whole weights",
        r"\.reshape_weight$": "a LoRA that reshapes weights",
    }.items()
}


@dataclass(frozen=True)
class Naming:
    """How a format spells the keys of a module's A, B and alpha.

    Attributes:
        prefixes: what keys begin with -> what the names of their modules begin with here.
        down: ending of A's key as it is written.
        up: ending of B's key as it is written.
        downs: regular expression of all endings of A's key that are read.
        ups: the same of B's.
    """

    prefixes: Mapping[str, str]
    down: str
    up: str
    downs: str
    ups: str

    @cached_property
    def _endings(self) -> re.Pattern[str]:
        return re.compile(rf"(?:(?P<down>{self.downs})|(?P<up>{self.ups})|(?P<alpha>\.alpha))$")

    def split(self, key: str) -> tuple[str, str] | None:
        """(module, `down`, `up` or `alpha`) of a key, or None if it is not spelled so."""
        ending = self._endings.search(key)
        prefix = next((p for p in self.prefixes if key.startswith(p)), None)
        if ending is None or prefix is None or ending.start() <= len(prefix):
            return None
        part = next(name for name, found in ending.groupdict().items() if found is not None)
        return self.prefixes[prefix] + key[len(prefix) : ending.start()], part

    def recognises(self, keys: Collection[str]) -> bool:
        """Whether some key is spelled like a factor in this naming."""
        return any((found := self.split(key)) and found[1] != "alpha" for key in keys)


@dataclass(frozen=True)
class Pair:
    """One module as a file holds it: its factor with alpha folded in, and its kernel."""

    factor: Factor
    kernel: Kernel | None = None


#: Modules of a spelled name with what the file holds for it; several where layers are fused.
ModulesOf = Callable[[str, Pair], Mapping[str, Pair]]


def refuse_other_kinds(path: Path, keys: Iterable[str]) -> None:
    """Name what a file is if it is an adapter, but not a plain LoRA.

    Raises:
        FileFormatError: it is of another kind.
    """
    for key in keys:
        for pattern, kind in _OTHER_KINDS.items():
            if pattern.search(key):
                raise FileFormatError(
                    f"only plain LoRA (B·A) can be read, but {path} is {kind} (key {key}): convert "
                    "it to a LoRA with the program that made it"
                )


def _rank_is_alpha(module: str, rank: int) -> float:  # noqa: ARG001
    return float(rank)


def _itself(name: str, pair: Pair) -> Mapping[str, Pair]:
    return {name: pair}


def read_pairs(
    content: Content,
    naming: Naming,
    metadata: AdapterMetadata,
    *,
    modules_of: ModulesOf = _itself,
    alpha_of: Callable[[str, int], float] = _rank_is_alpha,
) -> LoraFile:
    """Join A, B and alpha of each module into an adapter.

    Args:
        content: The file.
        naming: How its keys are spelled.
        metadata: Goes into the adapter.
        modules_of: What a spelled name stands for.
        alpha_of: Alpha of a spelled name and its rank if the file has no key for it.

    Raises:
        FileFormatError: a key is unknown or occurs in two spellings, a partner is missing, shapes
            contradict, a number is not finite, or the file is another kind of adapter.
    """
    refuse_other_kinds(content.path, content.tensors)
    pairs: dict[str, Pair] = {}
    alphas: dict[str, float] = {}
    for name, parts in sorted(_grouped(content, naming).items()):
        pair = _pair(content.path, name, parts, naming)
        stated = parts.get("alpha")
        alpha = alpha_of(name, pair.factor.rank) if stated is None else stated
        alphas[name] = _number(content.path, name, alpha)
        folded = _fold(pair.factor, alphas[name] / pair.factor.rank)
        for module, found in modules_of(name, Pair(folded, pair.kernel)).items():
            if module in pairs:
                raise FileFormatError(
                    f"a LoRA file must have each module once, but {content.path} has {module} in "
                    "two spellings"
                )
            pairs[module] = found
    factors = {module: pair.factor for module, pair in pairs.items()}
    kernels = {module: pair.kernel for module, pair in pairs.items() if pair.kernel is not None}
    try:
        adapter = Adapter(factors, metadata, kernels)
    except LayoutError as error:
        raise FileFormatError(f"{content.path} cannot be used: {error}") from error
    return LoraFile(adapter=adapter, alphas=alphas, header=content.header)


def _grouped(content: Content, naming: Naming) -> dict[str, dict[str, Tensor]]:
    """Spelled name -> its `down`, `up` and `alpha`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in content.tensors.items():
        split = naming.split(key)
        if split is None:
            raise FileFormatError(
                f"every key of a LoRA file must be <module>{naming.down} or its partners, with "
                f"<module> from {' or '.join(naming.prefixes)} on, but {content.path} has {key}: "
                "leave it out, or convert the file where it was made"
            )
        name, part = split
        if part in parts.setdefault(name, {}):
            raise FileFormatError(
                f"a LoRA file must have each key once, but {content.path} spells that of {name} in "
                "two ways"
            )
        parts[name][part] = tensor
    return parts


def _pair(path: Path, name: str, parts: Mapping[str, Tensor], naming: Naming) -> Pair:
    endings = {"down": naming.down, "up": naming.up, "alpha": ".alpha"}
    for part in ("down", "up"):
        if part not in parts:
            found = next(iter(parts))
            raise FileFormatError(
                f"every module of a LoRA file must have both its factors, but {path} has "
                f"{name}{endings[found]} without its partner {endings[part]}"
            )
    a, b = parts["down"], parts["up"]
    kernel = (a.shape[2], a.shape[3]) if a.dim() == 4 else None
    flat = kernel is None or tuple(b.shape[2:]) == (1, 1)
    if {a.dim(), b.dim()} not in ({2}, {4}) or not flat or 0 in (*a.shape, *b.shape):
        raise _contradiction(path, name, a, b)
    factor = Factor(a.flatten(1), b.flatten(1))
    if factor.A.shape[0] != factor.B.shape[1]:
        raise _contradiction(path, name, a, b)
    return Pair(factor, kernel)


def _contradiction(path: Path, name: str, a: Tensor, b: Tensor) -> FileFormatError:
    return FileFormatError(
        "A must be (r, in) and B (out, r), or of a convolution (r, in, h, w) and (out, r, 1, 1), "
        f"with r at least 1, but {name} in {path} has {tuple(a.shape)} and {tuple(b.shape)}"
    )


def _number(path: Path, name: str, alpha: Tensor | float) -> float:
    if isinstance(alpha, Tensor) and alpha.numel() != 1:
        raise FileFormatError(
            f"alpha must be one number, but {name} in {path} has {tuple(alpha.shape)} of them"
        )
    value = float(alpha)
    if not math.isfinite(value):
        raise FileFormatError(f"alpha must be finite, but {name} in {path} has {value}")
    return value


def _fold(factor: Factor, scale: float) -> Factor:
    """Fold a scale into B; in float32 at least, since half precision could overflow."""
    if scale == 1:
        return factor
    dtype = torch.promote_types(factor.B.dtype, torch.float32)
    return Factor(factor.A.to(dtype), factor.B.to(dtype) * scale)


def spell(naming: Naming, stem: str, pair: Pair) -> dict[str, Tensor]:
    """Keys and tensors of A and B of a module whose keys begin with `stem`."""
    a, b = pair.factor
    if pair.kernel is not None:
        a, b = a.unflatten(1, (-1, *pair.kernel)), b[:, :, None, None]
    return {stem + naming.down: a, stem + naming.up: b}


def pairs_of(adapter: Adapter) -> dict[str, Pair]:
    """The modules of an adapter as files hold them."""
    return {
        module: Pair(factor, adapter.kernels.get(module))
        for module, factor in adapter.factors.items()
    }
