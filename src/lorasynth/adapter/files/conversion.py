"""LoRAs made of other kinds of adapters, and of the difference of two checkpoints.

LoHa, LoKr, LoCon with a Tucker core and whole differences add a matrix to the weights.  DoRA (Liu
et al. 2024) changes them in proportion to themselves, so it needs the base model; OFT, BOFT, IA3
and GLoRA are refused by their names.  (The formulas are those of LyCORIS, Yeh et al. 2023,
https://github.com/KohakuBlueleaf/LyCORIS.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorasynth.adapter.factors import Factor
from lorasynth.adapter.families import Family
from lorasynth.adapter.files.container import (
    PEFT_CONFIG,
    Content,
    read_tensors,
    refuse_pickle,
    weights_file,
)
from lorasynth.adapter.files.fused import swap_halves
from lorasynth.adapter.files.keys import ADDITIVE, DORA, Key, parse, refusal
from lorasynth.adapter.files.peft_config import scale_from
from lorasynth.adapter.files.reader import (
    Configuration,
    LoraFile,
    Pair,
    assemble,
    configuration,
    fold,
    format_of,
    grouped,
    keys_of,
    number,
    pair_of,
    peft_config,
    read_content,
    shapes_of,
)
from lorasynth.adapter.files.resolve import resolve
from lorasynth.adapter.layout import Kernel
from lorasynth.adapter.lowrank import Nearest, of_kronecker, of_matrix, relative_error, truncated
from lorasynth.adapter.names import Layer
from lorasynth.core.errors import FileFormatError, LayoutError, reason_of

#: A rank that no update has.
_ANY = 1 << 20
#: What no layer exceeds: a side of its matrix, and its weights; small parts can make huge products.
_WIDEST, _LARGEST = 1 << 17, 1 << 29

#: The tensors of a checkpoint's denoiser, each read when it is asked for.
Weights = Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Reduced:
    """A LoRA that was made of something else.

    Attributes:
        file: as if it had been read.
        kinds: what it was; nothing for a plain LoRA.
        rank: the highest of its modules.
        error: |ΔW - ΔW'| / |ΔW|; 0 for a plain LoRA.
        worst: the same of the worst module.
        left_out: changed tensors of a checkpoint that are no matrices of layers: biases, norms.
    """

    file: LoraFile
    kinds: tuple[str, ...] = ()
    rank: int = 0
    error: float = 0.0
    worst: float = 0.0
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: LoraFile, parts: Sequence[Nearest], **facts: tuple[str, ...]) -> "Reduced":
        """What was made of the updates of its layers."""
        return cls(
            file,
            rank=max(part.factor.rank for part in parts),
            error=relative_error(parts),
            worst=max(relative_error([part]) for part in parts),
            **facts,
        )


#: Key, kernel and update of each layer.
_Layers = list[tuple[Key, Kernel | None, Nearest]]


def _pairs(layers: _Layers) -> list[Pair]:
    return [Pair(k, part.factor, kernel, float(part.factor.rank)) for k, kernel, part in layers]


def _reduced(
    content: Content, layers: _Layers, form: str, family: Family | None, **facts: tuple[str, ...]
) -> Reduced:
    made = assemble(content, _pairs(layers), form, family, states_alpha=True)
    return Reduced.of(made, [part for *_, part in layers], **facts)


@torch.no_grad()
def read_any(
    path: Path | str, rank: int, family: Family | None = None, base: Path | None = None
) -> Reduced:
    """Read a LoRA, or make one of at most a rank of another kind of adapter.

    Args:
        path: a file, or a folder that holds one of a known name.
        rank: the highest, of what is no plain LoRA.
        family: see `reader.read`.
        base: checkpoint of the base model, which DoRA needs.

    Raises:
        FileFormatError: see `reader.read`; or it is of a kind that adds no matrix to the weights,
            or the base model has other layers.
    """
    content = read_tensors(weights_file(Path(path)))
    keys = keys_of(content)
    kinds = tuple(sorted({key.kind for key in keys.values() if key.kind}))
    if not kinds:
        plain = read_content(content, keys, family)
        return Reduced(plain, rank=max(f.rank for f in plain.adapter.factors.values()))
    allowed = (*ADDITIVE, DORA) if base else ADDITIVE
    for key, found in keys.items():
        if found.kind and found.kind not in allowed:
            raise refusal(content.path, key, found.kind)
    form = format_of(keys)
    scale_of = _peft_scale(content) if {"LoHa", "LoKr"} & set(kinds) else None
    config = Configuration()
    if scale_of is None:
        config = configuration(content, form, dora=DORA in kinds)
    groups = list(grouped(content, keys))
    within = _ANY if DORA in kinds else rank
    layers: _Layers = []
    for spelled, sample, tensors in groups:
        stated = partial(config.alpha, sample) if scale_of is None else scale_of(sample.name)
        nearest, kernel = _nearest(content.path, spelled, tensors, within, stated)
        layers.append((sample, kernel, nearest))
    if base is not None and DORA in kinds:
        magnitudes = [_magnitude(tensors) for *_, tensors in groups]
        named = resolve(content.path, shapes_of(_pairs(layers)), content.header, family).layers
        with opened(base) as weights:
            layers = [
                (key, kernel, _dora(key.name, part, _weight(named[key], weights, base), m, rank))
                for (key, kernel, part), m in zip(layers, magnitudes, strict=True)
            ]
    return _reduced(content, layers, form, family, kinds=kinds)


@torch.no_grad()
def extracted(tuned: Path, base: Path, rank: int, family: Family | None = None) -> Reduced:
    """The LoRA of at most a rank that is nearest to what a fine-tune changed in the denoiser.

    Args:
        tuned: a pipeline's folder, a denoiser's, or a file with one; one layer is read at a time.
        base: the same of what it was tuned from.
        rank: the highest.
        family: where names and shapes leave several.

    Raises:
        FileFormatError: a checkpoint is damaged, or they are not of one architecture, or equal.
    """
    layers: _Layers = []
    left_out = []
    with opened(tuned) as first, opened(base) as second:
        for odd in sorted(first.keys() ^ second.keys()):
            raise FileFormatError(
                f"both checkpoints must have the same tensors, but only one of {tuned} and {base} "
                f"has {odd[:200]}"
            )
        for name in sorted(first):
            one, other = first[name](), second[name]()
            if one.shape != other.shape:
                raise FileFormatError(
                    f"both checkpoints must have the same shapes, but {name[:200]} is "
                    f"{tuple(one.shape)} in {tuned} and {tuple(other.shape)} in {base}"
                )
            change = one.float() - other.float()
            if not change.any():
                continue
            if not name.endswith(".weight") or change.dim() not in (2, 4, 5):
                left_out.append(name)
                continue
            key = parse(f"transformer.{name.removesuffix('.weight')}.lora_A.weight")
            assert key is not None
            try:
                layers.append((key, _kernel(change), of_matrix(change.flatten(1), rank)))
            except LayoutError as error:
                raise FileFormatError(
                    f"{name[:200]} in {tuned} or {base} cannot be used: {error}"
                ) from error
    if not layers:
        raise FileFormatError(f"{tuned} must differ from {base} in a layer's matrix, but does not")
    content = Content(tuned, {key.spelled: part.factor.A for key, _, part in layers}, {})
    return _reduced(content, layers, "diffusers", family, left_out=tuple(left_out))


# Kinds


def _peft_scale(content: Content) -> Callable[[str], float] | None:
    """Alpha / r of a module of PEFT's LoHa or LoKr; None where the file has alphas itself."""
    config = peft_config(content)
    return None if config is None else scale_from(config, content.path.parent / PEFT_CONFIG)


def _nearest(
    path: Path,
    name: str,
    parts: Mapping[str, Tensor],
    rank: int,
    stated: float | Callable[[int], float],
) -> tuple[Nearest, Kernel | None]:
    """What is added to one layer, of at most a rank, and its kernel.

    `stated` is the scale of all layers, or alpha of a rank where the layer itself has none.
    """
    scale = None if callable(stated) else stated
    try:
        if "diff" in parts:
            return _of_weight(parts["diff"], rank)
        if any(part.startswith("hada_") for part in parts):
            return _loha(parts, _scale(path, name, parts, ("hada_w1_b",), scale), rank)
        if any(part.startswith("lokr_") for part in parts):
            decomposed = ("lokr_w2_b", "lokr_w1_b")
            return _lokr(parts, _scale(path, name, parts, decomposed, scale), rank)
        factor, kernel = _lora(path, name, parts)
        usual = stated(factor.rank) if callable(stated) else float(factor.rank)
        alpha = number(path, name, parts.get("alpha", usual))
        folded = fold(factor, alpha / factor.rank)
        return truncated(folded, max(rank, folded.rank)), kernel
    except LayoutError as error:
        raise FileFormatError(f"{name[:200]} in {path} cannot be used: {error}") from error
    except (KeyError, RuntimeError, ValueError, IndexError, TypeError, ArithmeticError) as error:
        reason = reason_of(error)[:120]
        raise FileFormatError(
            f"the parts of a layer must fit each other, but those of {name[:200]} in {path} do not "
            f"({type(error).__name__}: {reason})"
        ) from error


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


def _kernel(weight: Tensor) -> Kernel | None:
    return tuple(weight.shape[2:]) if weight.dim() > 2 else None


def _require_usual(out: int, width: int) -> None:
    if max(out, width) > _WIDEST or out * width > _LARGEST:
        raise LayoutError(
            f"a layer must be at most {_WIDEST} wide and have at most {_LARGEST} weights, but its "
            f"parts make {out} x {width}"
        )


def _of_weight(weight: Tensor, rank: int) -> tuple[Nearest, Kernel | None]:
    if weight.dim() not in (2, 4, 5):
        raise LayoutError(
            "a LoRA changes matrices and kernels, but this difference, of a norm or a bias, has "
            f"the shape {tuple(weight.shape)}: leave it out, or merge the file into the base model"
        )
    return of_matrix(weight.float().flatten(1), rank), _kernel(weight)


def _lora(path: Path, name: str, parts: Mapping[str, Tensor]) -> tuple[Factor, Kernel | None]:
    """A and B; a Tucker core goes into A, which has the kernel then."""
    core = parts.get("lora_mid")
    if core is None or not {"down", "up"} <= parts.keys() or core.dim() != 4:
        return pair_of(path, name, parts)
    down, up = (parts[part].float().flatten(1) for part in ("down", "up"))
    if core.shape[:2] != (up.shape[1], down.shape[0]):
        raise FileFormatError(
            f"a Tucker core must be between both factors, but that of {name[:200]} in {path} is "
            f"{tuple(core.shape)}"
        )
    _require_usual(len(up), down.shape[1] * core[0, 0].numel())
    a = torch.einsum("pqhw,qi->pihw", core.float(), down)
    return Factor(a.flatten(1), up), _kernel(core)


def _loha(parts: Mapping[str, Tensor], scale: float, rank: int) -> tuple[Nearest, Kernel | None]:
    """(B1·A1) * (B2·A2), elementwise, which is of rank r² at most."""
    (b1, a1), (b2, a2) = (
        (parts[f"hada_w{n}_a"].float(), parts[f"hada_w{n}_b"].float()) for n in (1, 2)
    )
    if "hada_t1" in parts:
        one, other = (
            _tucker(parts[f"hada_t{n}"].float(), b, a) for n, b, a in ((1, b1, a1), (2, b2, a2))
        )
        return _of_weight(scale * one * other, rank)
    out, width = b1.shape[0], a1.shape[1]
    _require_usual(out, width)
    if b1.shape[1] * b2.shape[1] * (out + width) >= out * width:
        return _of_weight(scale * (b1 @ a1) * (b2 @ a2), rank)
    up = (b1[:, :, None] * b2[:, None, :]).flatten(1)
    down = (a1[:, None, :] * a2[None, :, :]).flatten(0, 1)
    return truncated(Factor(down, scale * up), rank), None


def _lokr(parts: Mapping[str, Tensor], scale: float, rank: int) -> tuple[Nearest, Kernel | None]:
    """W1 ⊗ W2, each a matrix or a product of two."""
    left, right = (_kronecker_part(parts, n) for n in (1, 2))
    if left.dim() != 2 or right.dim() not in (2, 4):
        raise ValueError(f"Kronecker parts of {left.dim()} and {right.dim()} axes")
    _require_usual(len(left) * len(right), left.shape[1] * right[0].numel())
    return of_kronecker(left, right.flatten(1), scale, rank), _kernel(right)


def _kronecker_part(parts: Mapping[str, Tensor], n: int) -> Tensor:
    if f"lokr_w{n}" in parts:
        return parts[f"lokr_w{n}"].float()
    a, b = parts[f"lokr_w{n}_a"].float(), parts[f"lokr_w{n}_b"].float()
    _require_usual(len(a), b.shape[-1])
    return _tucker(parts["lokr_t2"].float(), a, b) if n == 2 and "lokr_t2" in parts else a @ b


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """LyCORIS' order: the core's first axis goes with a, which has the outputs as columns."""
    _require_usual(a.shape[1], b.shape[1] * core[0, 0].numel())
    return torch.einsum("ijhw,ip,jr->prhw", core, a, b)


# DoRA


def _magnitude(parts: Mapping[str, Tensor]) -> Tensor | None:
    """The lengths m of a layer's rows, or columns; None where it has none."""
    names = ("dora_scale", "lora_magnitude_vector")
    return next((t for part, t in parts.items() if part.startswith(names)), None)


def _dora(
    name: str, added: Nearest, weight: Tensor, magnitude: Tensor | None, rank: int
) -> Nearest:
    """m·(W + ΔW) / |W + ΔW| - W, with a length for each output (PEFT, LyCORIS), or each input.

    Raises:
        FileFormatError: the base model's weights, or m, have another shape.
    """
    update = added.factor.B @ added.factor.A
    if weight.numel() != update.numel() or len(weight) != len(update):
        raise FileFormatError(
            f"the base model must have the adapter's shapes, but {name[:200]} is "
            f"{tuple(weight.shape)} there and {tuple(update.shape)} here"
        )
    if magnitude is None:
        return truncated(added.factor, max(rank, added.factor.rank))
    base = weight.float()
    merged = base + update.view_as(base)
    axis = 0 if magnitude.numel() == len(base) else 1
    others = [other for other in range(base.dim()) if other != axis]
    norms = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    if magnitude.numel() != norms.numel():
        raise FileFormatError(
            f"the magnitudes of DoRA must be one for each row or column, but those of "
            f"{name[:200]} are {tuple(magnitude.shape)} of a layer {tuple(base.shape)}"
        )
    changed = merged * (magnitude.float().view_as(norms) / norms) - base
    try:
        return of_matrix(changed.flatten(1), rank)
    except LayoutError as error:
        raise FileFormatError(f"the DoRA of {name[:200]} cannot be used: {error}") from error


def _weight(layer: Layer, weights: Weights, base: Path) -> Tensor:
    """The base model's matrix or kernel of a layer of a file."""
    names = [f"{module}.weight" for module in layer.modules]
    if all(name in weights for name in names):
        whole = torch.cat([weights[name]() for name in names])
        return swap_halves(Factor(whole[:1], whole)).B if layer.swapped else whole
    if f"{layer.name}.weight" in weights:
        return weights[f"{layer.name}.weight"]()
    raise FileFormatError(
        f"the base model must have every layer of the adapter, but {base} has no "
        f"{layer.name[:200]}: give the one that it was trained for"
    )


# Checkpoints


@contextmanager
def opened(path: Path) -> Iterator[Weights]:
    """The tensors by name of a denoiser: in a file, a folder of its shards, or a pipeline's.

    Raises:
        FileFormatError: there is none, or it is damaged.
    """
    folders = [path / "unet", path / "transformer", path]  # pipelines may hold whole files too
    files = [path] if path.is_file() else []
    for folder in folders:
        files = files or sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileFormatError(
            f"a checkpoint must be a .safetensors file, or a folder with the denoiser's, but "
            f"{path} is none"
        )
    with ExitStack() as stack:
        tensors: dict[str, Callable[[], Tensor]] = {}
        for file in files:
            refuse_pickle(file)
            try:
                shard = stack.enter_context(safe_open(file, framework="pt"))
                names = list(shard.keys())
            except (SafetensorError, OSError) as error:
                raise FileFormatError(
                    f"a checkpoint must be complete safetensors, but {file} is not"
                ) from error
            # published checkpoints in one file put these before the denoiser's names
            prefixes = ("model.diffusion_model.", "diffusion_model.", "")
            prefix = next(p for p in prefixes if any(name.startswith(p) for name in names))
            for name in names:
                if name.startswith(prefix):
                    tensors[name.removeprefix(prefix)] = partial(shard.get_tensor, name)
        yield tensors
