"""Adapters that are no plain LoRA, made into one where they add a matrix to the weights.

LoHa, LoKr, LoCon with a Tucker core and whole differences are such; DoRA, OFT, BOFT, IA3 and GLoRA
change the weights in proportion to themselves, so no file without the weights says what they add.
(The formulas are those of LyCORIS, https://github.com/KohakuBlueleaf/LyCORIS, Yeh et al. 2023.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorasynth.adapter.factors import Factor
from lorasynth.adapter.families import Family
from lorasynth.adapter.files.container import Content, read_tensors, weights_file
from lorasynth.adapter.files.keys import Key, parse_all
from lorasynth.adapter.files.peft_config import parse_config
from lorasynth.adapter.files.reader import (
    LoraFile,
    Pair,
    assemble,
    fold,
    format_of,
    number,
    pair_of,
    read,
)
from lorasynth.adapter.layout import Kernel
from lorasynth.adapter.lowrank import Nearest, of_kronecker, of_matrix, relative_error, truncated
from lorasynth.core.errors import FileFormatError

#: What is added to the weights; the others are refused by their names.
ADDITIVE = ("LoHa", "LoKr", "a LoRA with a Tucker core", "a difference of whole weights")
#: What may lie beside one of these and is none.
_PEFT_KINDS = ("LOHA", "LOKR")


@dataclass(frozen=True)
class Reduced:
    """A LoRA that was made of another kind of adapter.

    Attributes:
        file: as if it had been read.
        kinds: what it was.
        rank: the highest of its modules.
        error: |ΔW - ΔW'| / |ΔW|; 0 for a plain LoRA.
        worst: the same of the worst module.
    """

    file: LoraFile
    kinds: tuple[str, ...]
    rank: int
    error: float
    worst: float


def read_any(path: Path | str, rank: int, family: Family | None = None) -> Reduced:
    """Read a LoRA, or make one of at most a rank of another kind of adapter.

    Args:
        path: a file, or a folder that holds one of a known name.
        rank: the highest, of what is no plain LoRA.
        family: see `reader.read`.

    Raises:
        FileFormatError: see `reader.read`; or it is of a kind that adds no matrix to the weights.
    """
    file = weights_file(Path(path))
    content = read_tensors(file)
    keys = parse_all(file, content.tensors)
    kinds = tuple(sorted({key.kind for key in keys.values() if key.kind}))
    if not kinds:
        found = read(path, family)
        highest = max(factor.rank for factor in found.adapter.factors.values())
        return Reduced(found, (), highest, 0.0, 0.0)
    for key, one in keys.items():
        if one.kind and one.kind not in ADDITIVE:
            raise FileFormatError(
                f"a LoRA can be made of what is added to the weights, but {path} is {one.kind} "
                f"(key {key[:200]}), of which the weights decide what it adds: merge it into "
                "the base model and use `lorasynth extract`"
            )
    scale = _peft_scale(content)
    pairs, parts = [], []
    for spelled, (sample, tensors) in sorted(_groups(content, keys).items()):
        nearest, kernel = _nearest(file, spelled, tensors, rank, scale)
        pairs.append(Pair(sample, nearest.factor, kernel, float(nearest.factor.rank)))
        parts.append(nearest)
    made = assemble(content, pairs, format_of(keys), family, states_alpha=True)
    highest = max(part.factor.rank for part in parts)
    worst = max(relative_error([part]) for part in parts)
    return Reduced(made, kinds, highest, relative_error(parts), worst)


def _groups(content: Content, keys: Mapping[str, Key]) -> dict[str, tuple[Key, dict[str, Tensor]]]:
    groups: dict[str, tuple[Key, dict[str, Tensor]]] = {}
    for key, found in keys.items():
        sample, tensors = groups.setdefault(found.spelled, (found, {}))
        if sample.part == "alpha":
            groups[found.spelled] = (found, tensors)
        tensors[found.part.removesuffix(".weight")] = content.tensors[key]
    return groups


def _peft_scale(content: Content) -> float | None:
    """Alpha / r of a folder of PEFT's LoHa or LoKr; None where the file has alphas itself."""
    path = content.path.parent / "adapter_config.json"
    if content.path.name != "adapter_model.safetensors" or not path.is_file():
        return None
    config = parse_config(path.read_text(encoding="utf-8", errors="replace"), str(path))
    if config.get("peft_type") not in _PEFT_KINDS or config.get("alpha_pattern"):
        raise FileFormatError(
            f"a PEFT folder of LoHa or LoKr must have one alpha, but {path} has peft_type "
            f"{str(config.get('peft_type'))[:40]!r} and patterns"
        )
    try:
        return float(config["alpha"]) / float(config["r"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise FileFormatError(
            f"r and alpha must be numbers, but those of {path} are not"
        ) from error


def _nearest(
    path: Path, name: str, parts: Mapping[str, Tensor], rank: int, scale: float | None
) -> tuple[Nearest, Kernel | None]:
    """The update of one layer, of at most a rank, and its kernel."""
    try:
        if "diff" in parts:
            return _of_weight(parts["diff"], 1.0, rank)
        if any(part.startswith("hada_") for part in parts):
            return _loha(parts, _scale(path, name, parts, ("hada_w1_b",), scale), rank)
        if any(part.startswith("lokr_") for part in parts):
            decomposed = ("lokr_w2_b", "lokr_w1_b")
            return _lokr(parts, _scale(path, name, parts, decomposed, scale), rank)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0][:120]
        raise FileFormatError(
            f"the parts of a layer must fit each other, but those of {name[:200]} in {path} do not "
            f"({type(error).__name__}: {reason})"
        ) from error
    factor, kernel = _lora(path, name, parts)
    alpha = number(path, name, parts.get("alpha", float(factor.rank)))
    folded = fold(factor, alpha / factor.rank)
    return truncated(folded, max(rank, folded.rank)), kernel


def _scale(
    path: Path,
    name: str,
    parts: Mapping[str, Tensor],
    decomposed: tuple[str, ...],
    stated: float | None,
) -> float:
    """Alpha / rank; 1 where nothing is decomposed, as LyCORIS and ComfyUI have it."""
    if stated is not None:
        return stated
    ranks = [parts[part].shape[0] for part in decomposed if part in parts]
    if not ranks or "alpha" not in parts:
        return 1.0
    return number(path, name, parts["alpha"]) / ranks[0]


def _of_weight(weight: Tensor, scale: float, rank: int) -> tuple[Nearest, Kernel | None]:
    if weight.dim() not in (2, 4):
        raise ValueError(f"a matrix or kernel was expected, not {tuple(weight.shape)}")
    kernel = (weight.shape[2], weight.shape[3]) if weight.dim() == 4 else None
    return of_matrix(scale * weight.float().flatten(1), rank), kernel


def _lora(path: Path, name: str, parts: Mapping[str, Tensor]) -> tuple[Factor, Kernel | None]:
    """A and B; a Tucker core goes into A, which has the kernel then."""
    core = parts.get("lora_mid")
    if core is None:
        return pair_of(path, name, parts)
    if not {"down", "up"} <= parts.keys() or core.dim() != 4:
        return pair_of(path, name, {k: v for k, v in parts.items() if k != "lora_mid"})
    down, up = (parts[part].float().flatten(1) for part in ("down", "up"))
    if core.shape[:2] != (up.shape[1], down.shape[0]):
        raise FileFormatError(
            f"a Tucker core must be between both factors, but that of {name[:200]} in {path} is "
            f"{tuple(core.shape)}"
        )
    a = torch.einsum("pqhw,qi->pihw", core.float(), down)
    return Factor(a.flatten(1), up), (core.shape[2], core.shape[3])


def _loha(parts: Mapping[str, Tensor], scale: float, rank: int) -> tuple[Nearest, Kernel | None]:
    """(B1·A1) * (B2·A2), elementwise, which is of rank r² at most."""
    (b1, a1), (b2, a2) = (
        (parts[f"hada_w{n}_a"].float(), parts[f"hada_w{n}_b"].float()) for n in (1, 2)
    )
    if "hada_t1" in parts:
        one, other = (
            _tucker(parts[f"hada_t{n}"].float(), b, a) for n, b, a in ((1, b1, a1), (2, b2, a2))
        )
        return _of_weight(one * other, scale, rank)
    if b1.shape[1] * b2.shape[1] >= min(b1.shape[0], a1.shape[1]):
        return _of_weight((b1 @ a1) * (b2 @ a2), scale, rank)
    up = (b1[:, :, None] * b2[:, None, :]).flatten(1)
    down = (a1[:, None, :] * a2[None, :, :]).flatten(0, 1)
    return truncated(Factor(down, scale * up), rank), None


def _lokr(parts: Mapping[str, Tensor], scale: float, rank: int) -> tuple[Nearest, Kernel | None]:
    """W1 ⊗ W2, each a matrix or a product of two."""
    left, right = (_kronecker_part(parts, n) for n in (1, 2))
    if left.dim() != 2 or right.dim() not in (2, 4):
        raise ValueError(f"Kronecker parts of {left.dim()} and {right.dim()} axes")
    kernel = (right.shape[2], right.shape[3]) if right.dim() == 4 else None
    return of_kronecker(left, right.flatten(1), scale, rank), kernel


def _kronecker_part(parts: Mapping[str, Tensor], n: int) -> Tensor:
    if f"lokr_w{n}" in parts:
        return parts[f"lokr_w{n}"].float()
    a, b = parts[f"lokr_w{n}_a"].float(), parts[f"lokr_w{n}_b"].float()
    return _tucker(parts["lokr_t2"].float(), a, b) if n == 2 and "lokr_t2" in parts else a @ b


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """LyCORIS' order: the core's first axis goes with a, which has the outputs as columns."""
    return torch.einsum("ijhw,ip,jr->prhw", core, a, b)
