"""What a LoRA file is: family, ranks, alphas, norms, and what each program reads of it."""

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.factors import Factor, Factors
from lorasynth.adapter.files import LoraFile, read
from lorasynth.adapter.files.header import CONFIG_KEY
from lorasynth.adapter.layout import Layout
from lorasynth.adapter.programs import COMFYUI, DIFFUSERS, PEFT, PROGRAMS, Reading, unread

#: How far A·Aᵀ and Bᵀ·B of a canonical adapter may be from one diagonal matrix, as a share of it.
_CANONICAL_TOLERANCE = 1e-3
#: A module whose norm is so many times the median's is named: training diverged there.
_EXPLODED = 1_000

#: Numbers of a signature, and the relative difference between equal ones in other number types.
_PROBES, _ROUNDED = 8, 0.01

_BLOCK = re.compile(
    r"(?:text_encoder(?:_\d)?|mid_block|[a-z_]*(?:blocks|layers|refiner)\.\d+|[^.]+)"
)
_STAGES = ("text_encoder", "conv_in", "down_blocks", "mid_block", "up_blocks", "transformer_blocks")


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect_file` found.

    Attributes:
        file: the file.
        format: how its keys are spelled.
        family: base models that it fits, as far as that is known.
        told_by: how that is known.
        ranks: rank -> number of modules.
        alphas: alpha as the file states it -> number of its layers.
        dtype: of its numbers.
        layout: its modules and their widths.
        modules: adapted modules.
        parameters: numbers in all A and B.
        norms: Frobenius norm of ΔW of each block of the model, in the model's order.
        canonical: whether A·Aᵀ = Bᵀ·B, diagonal, in every module.
        metadata: what its header states.
        training: what its header states of its training, most frequent tags included.
        programs: how much of it each program reads.
        faults: what is broken in it, one line each.
        warnings: what else is odd about it.
        signature: the update in a few numbers, which depend on nothing else.
    """

    file: Path
    format: str
    family: str
    told_by: str
    ranks: dict[int, int]
    alphas: dict[float, int]
    dtype: str
    layout: Layout
    modules: int
    parameters: int
    norms: dict[str, float]
    canonical: bool
    metadata: AdapterMetadata
    training: dict[str, str]
    programs: tuple[Reading, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    signature: tuple[float, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is broken and some program reads all of it."""
        return not self.faults and any(reading.whole for reading in self.programs)


def inspect_file(path: Path) -> Inspection:
    """Read a LoRA file of any known format and describe it.

    Raises:
        FileFormatError: it cannot be read.
    """
    found = read(path)
    adapter = found.adapter
    factors = adapter.factors.values()
    norms = module_sizes(adapter)
    return Inspection(
        file=path,
        format=found.format,
        family=found.verdict.name,
        told_by=found.verdict.how,
        ranks=dict(sorted(Counter(factor.rank for factor in factors).items())),
        alphas=dict(sorted(Counter(found.alphas.values()).items())),
        dtype=str(found.dtype).removeprefix("torch."),
        layout=adapter.layout,
        modules=len(adapter.factors),
        parameters=adapter.layout.size,
        norms=block_norms(norms),
        canonical=all(_is_canonical(factor) for factor in factors),
        metadata=adapter.metadata,
        training=_training(found.header),
        programs=readings(found),
        faults=tuple(_faults(norms)),
        warnings=tuple(_warnings(found, norms)),
        signature=signature(adapter.factors),
    )


def signature(factors: Factors) -> tuple[float, ...]:
    """Sums over all modules of uᵀ·ΔW·v, for a few random u and v that a module's name decides.

    Adapters with equal updates have equal ones, in any spelling, gauge, rank and file; with chance,
    others have not.
    """
    total = torch.zeros(_PROBES, dtype=torch.float64)
    for module, factor in factors.items():
        stream = torch.Generator().manual_seed(zlib.crc32(module.encode()))
        v = torch.randn(factor.in_features, _PROBES, generator=stream, dtype=torch.float64)
        u = torch.randn(factor.out_features, _PROBES, generator=stream, dtype=torch.float64)
        total += ((factor.A.double() @ v) * (factor.B.double().mT @ u)).sum(0)
    return tuple(total.tolist())


def twins(signatures: Sequence[Sequence[float]]) -> dict[int, tuple[int, float]]:
    """Which adapters have the update of an earlier one: number -> that one's, and the strength.

    Number types of 16 bits round by a few thousandths, which counts as equal.
    """
    if not signatures:
        return {}
    rows = torch.tensor(signatures, dtype=torch.float64)
    sizes = rows.norm(dim=1)
    found: dict[int, tuple[int, float]] = {}
    firsts: list[int] = []
    for row, (values, size) in enumerate(zip(rows, sizes, strict=True)):
        if not 0 < size < math.inf:
            continue
        along = rows[firsts] @ values / sizes[firsts]  # how much of each earlier one is in it
        off = (1 - (along / size).square()).clamp_min(0).sqrt()
        if firsts and off.min() < _ROUNDED:
            best = int(off.argmin())
            found[row] = firsts[best], float(along[best] / sizes[firsts[best]])
        else:
            firsts.append(row)
    return found


def module_sizes(adapter: Adapter) -> dict[str, float]:
    """Frobenius norm of each module's ΔW; computed in float64, of factors that are near 1."""
    sizes = {}
    for module, factor in adapter.factors.items():
        a, b = factor.A.double(), factor.B.double()
        largest = [float(part.abs().max()) or 1.0 for part in (a, b)]
        a, b = a / largest[0], b / largest[1]
        square = float(((b.mT @ b) * (a @ a.mT)).sum())
        sizes[module] = max(square, 0.0) ** 0.5 * largest[0] * largest[1]
    return sizes


def block_norms(sizes: Mapping[str, float]) -> dict[str, float]:
    """Frobenius norm of ΔW of each block: what is before the second number or part of a name."""
    blocks: dict[str, float] = {}
    for module, value in sizes.items():
        found = _BLOCK.match(module)
        assert found is not None, "every name has a first part"
        blocks[found[0]] = math.hypot(blocks.get(found[0], 0.0), value)
    return {block: blocks[block] for block in sorted(blocks, key=_order)}


def _order(block: str) -> tuple[int, str, int]:
    """Blocks as data passes them: text, down, middle, up."""
    stem, _, number = block.partition(".")
    stage = next((i for i, name in enumerate(_STAGES) if stem.startswith(name)), len(_STAGES))
    return stage, stem, int(number or 0)


def _is_canonical(factor: Factor) -> bool:
    A, B = factor.A.double(), factor.B.double()
    inputs, outputs = A @ A.mT, B.mT @ B
    scale = _CANONICAL_TOLERANCE * torch.maximum(inputs.norm(), outputs.norm())
    crossed = inputs - torch.diag(inputs.diagonal())
    return bool((inputs - outputs).norm() <= scale and crossed.norm() <= scale)


def _training(header: Mapping[str, str]) -> dict[str, str]:
    """Entries that people ask for: the title, the author, the base model, the data's tags."""
    wanted = (
        *(f"modelspec.{key}" for key in ("title", "author", "license", "date")),
        *(f"ss_{key}" for key in ("sd_model_name", "num_train_images", "steps", "learning_rate")),
    )
    facts = {key.partition(".")[2] or key[3:]: header[key] for key in wanted if header.get(key)}
    try:
        tags: Counter[str] = Counter()
        folders = json.loads(header.get("ss_tag_frequency", "{}"))
        for folder in folders.values():
            tags.update({str(tag).strip(): int(count) for tag, count in folder.items()})
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return facts
    if folders:  # kohya's scripts name them <repeats>_<trigger words>
        facts["folders"] = ", ".join(list(folders)[:8])
    if tags:
        facts["tags"] = ", ".join(f"{tag} ({count})" for tag, count in tags.most_common(8))
    return facts


def readings(found: LoraFile) -> tuple[Reading, ...]:
    """How much of a file each program reads, as the loaders were measured to do."""
    everything = set(found.adapter.factors)
    if found.spelled:
        lost = {
            program: set[str]().union(*(unread(f, program, how) for f, how in found.spelled))
            for program in PROGRAMS
        }
    else:  # no known family: what has the model's own names is read by these two
        own = {DIFFUSERS: "diffusers", PEFT: "peft"}
        lost = {p: set() if own.get(p) == found.format else everything for p in PROGRAMS}
    reasons = {program: _example(modules) for program, modules in lost.items()}
    ranks = {factor.rank for factor in found.adapter.factors.values()}
    alphas = set(found.alphas.values())
    unet = any(family.denoiser == "unet" for family in found.verdict.candidates)
    if found.format == "kohya" and len(alphas) > 1 and unet:
        lost[DIFFUSERS] |= {module for module in everything if ".attn" in module}
        reasons[DIFFUSERS] = "the alphas of attention, where alphas differ"
    if CONFIG_KEY in found.header and alphas != ranks:
        lost[COMFYUI], reasons[COMFYUI] = everything, "alpha in the header, and so the scale"
    return tuple(
        Reading(program, len(everything - modules), len(everything), reasons[program])
        for program, modules in lost.items()
    )


def _example(modules: set[str]) -> str:
    return f"{min(modules)}{', ...' if len(modules) > 1 else ''}" if modules else ""


def _warnings(found: LoraFile, sizes: Mapping[str, float]) -> Iterator[str]:
    if not all(math.isfinite(size) for size in sizes.values()):
        yield "the norm of an update is not finite: its numbers are far too large"
    if not found.states_alpha:
        yield "it states no alpha: if it was trained with alpha other than rank, that is lost"
    if not found.verdict.candidates:
        yield "no known family has all of its layers' names"
    if found.format == "peft":
        yield "pipe.load_lora_weights loads nothing from a PEFT folder and only warns"


def _faults(sizes: Mapping[str, float]) -> Iterator[str]:
    zero = [module for module, size in sizes.items() if size == 0]
    if zero:
        yield f"{len(zero)} of its {len(sizes)} updates are zero ({zero[0]}, ...)"
    middle = sorted(sizes.values())[len(sizes) // 2]
    loud = [module for module, size in sizes.items() if middle and size > _EXPLODED * middle]
    if loud:
        yield f"{len(loud)} of its updates are over {_EXPLODED} times the median ({loud[0]}, ...)"
