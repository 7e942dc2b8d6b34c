"""What a LoRA file is: family, ranks, alphas, norms, and what some loader would lose of it."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.components import component_of
from lorasynth.adapter.factors import Factor, module_norms
from lorasynth.adapter.families import family_of, is_transformer
from lorasynth.adapter.files import FORMATS, LoraFile, detect

#: How far A·Aᵀ and Bᵀ·B of a canonical adapter may be from one diagonal matrix, as a share of it.
_CANONICAL_TOLERANCE = 1e-3

_BLOCK = re.compile(
    r"(?:text_encoder(?:_\d)?|(?:down|up)_blocks\.\d+|mid_block|(?:single_)?transformer_blocks\.\d+|[^.]+)"
)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect_file` found.

    Attributes:
        file: the file.
        format: how its keys are spelled.
        family: base models that it fits, as far as names and widths tell.
        ranks: rank -> number of modules.
        alphas: alpha as the file states it -> number of its layers.
        dtype: of its numbers.
        modules: adapted modules.
        parameters: numbers in all A and B.
        norms: Frobenius norm of ΔW of each block of the model, in the model's order.
        canonical: whether A·Aᵀ = Bᵀ·B, diagonal, in every module.
        metadata: what its header states.
        warnings: what some program would lose or refuse, one line each.
    """

    file: Path
    format: str
    family: str
    ranks: dict[int, int]
    alphas: dict[float, int]
    dtype: str
    modules: int
    parameters: int
    norms: dict[str, float]
    canonical: bool
    metadata: AdapterMetadata
    warnings: tuple[str, ...]


def inspect_file(path: Path) -> Inspection:
    """Read a LoRA file of any known format and describe it.

    Raises:
        FileFormatError: it cannot be read.
    """
    kind = detect(path)
    read, name = kind.open(path), FORMATS.name_of(type(kind))
    adapter = read.adapter
    factors = adapter.factors.values()
    family = family_of(adapter.layout)
    return Inspection(
        file=path,
        format=name,
        family=family.name if family else "unknown",
        ranks=dict(sorted(Counter(factor.rank for factor in factors).items())),
        alphas=dict(sorted(Counter(read.alphas.values()).items())),
        dtype=", ".join(sorted({str(f.A.dtype).removeprefix("torch.") for f in factors})),
        modules=len(adapter.factors),
        parameters=adapter.layout.size,
        norms=block_norms(adapter),
        canonical=all(_is_canonical(factor) for factor in factors),
        metadata=adapter.metadata,
        warnings=tuple(_warnings(read, name)),
    )


def block_norms(adapter: Adapter) -> dict[str, float]:
    """Frobenius norm of ΔW of each block: what is before the second number or part of a name."""
    squares: dict[str, float] = {}
    for module, value in module_norms(adapter.factors).items():
        found = _BLOCK.match(module)
        assert found is not None, "every name has a first part"
        squares[found[0]] = squares.get(found[0], 0.0) + float(value) ** 2
    return {block: squares[block] ** 0.5 for block in sorted(squares, key=_order)}


def _order(block: str) -> tuple[int, str, int]:
    """Blocks as data passes them: text, down, middle, up."""
    stem, _, number = block.partition(".")
    stages = ("text_encoder", "down_blocks", "mid_block", "up_blocks", "transformer_blocks")
    stage = next((i for i, name in enumerate(stages) if stem.startswith(name)), len(stages))
    return stage, stem, int(number or 0)


def _is_canonical(factor: Factor) -> bool:
    A, B = factor.A.double(), factor.B.double()
    inputs, outputs = A @ A.mT, B.mT @ B
    scale = _CANONICAL_TOLERANCE * torch.maximum(inputs.norm(), outputs.norm())
    crossed = inputs - torch.diag(inputs.diagonal())
    return bool((inputs - outputs).norm() <= scale and crossed.norm() <= scale)


def _warnings(read: LoraFile, name: str) -> Iterator[str]:
    adapter = read.adapter
    ranks = {factor.rank for factor in adapter.factors.values()}
    scaled = {alpha for alpha in read.alphas.values() if {alpha} != ranks}
    if name == "peft":
        yield "pipe.load_lora_weights loads nothing from a PEFT folder and only warns"
        if scaled:
            yield "unet.load_lora_adapter loses its alpha and so its scale"
        yield "ComfyUI and A1111 do not read it"
    if name == "diffusers":
        if "lora_adapter_metadata" not in read.header:
            yield "it states no alpha: if it was trained with alpha other than rank, that is lost"
        if any(".attn" in module for module in adapter.factors) and not is_transformer(
            adapter.factors
        ):
            yield "ComfyUI loads nothing of its attention layers"
    if name == "kohya" and len(set(read.alphas.values())) > 1:
        yield "diffusers 0.42 drops the alphas of attention modules where they differ"
    outside = [m for m in adapter.factors if not component_of(m) and "transformer_blocks" not in m]
    if name == "kohya" and is_transformer(adapter.factors) and outside:
        yield f"diffusers 0.42 drops what is outside the transformer's blocks ({outside[0]}, ...)"
    attention = any(component_of(m) and ".self_attn." in m for m in adapter.factors)
    if name == "kohya" and attention and any(".mlp." in m for m in adapter.factors):
        yield "diffusers 0.42 drops the attention of text encoders that have MLPs adapted too"
    if any(not factor.B.any() for factor in adapter.factors.values()):
        yield "some of its updates are zero"
