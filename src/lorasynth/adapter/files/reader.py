"""The one reader of LoRA files: from keys in any spelling to the factors of diffusers' layers."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasynth.adapter.adapter import Adapter
from lorasynth.adapter.factors import Factor
from lorasynth.adapter.families import Family, Verdict, stated_family
from lorasynth.adapter.files.container import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    Content,
    read_tensors,
    weights_file,
)
from lorasynth.adapter.files.fused import separate, swap_halves
from lorasynth.adapter.files.header import CONFIG_KEY, from_header
from lorasynth.adapter.files.keys import Key, parse_all, refusal
from lorasynth.adapter.files.peft_config import (
    AlphaOf,
    alpha_from,
    parse_config,
    read_config,
    refuse_other_kinds,
)
from lorasynth.adapter.files.resolve import Resolved, resolve
from lorasynth.adapter.layout import Kernel
from lorasynth.adapter.programs import Spelling, names_of
from lorasynth.core.errors import FileFormatError, LayoutError

#: What numbers are read as; float16 holds all that the 8-bit types do.
_TYPES = {t: t for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
_TYPES |= dict.fromkeys((torch.float8_e4m3fn, torch.float8_e5m2), torch.float16)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
#: Class of a model that a PEFT folder is for -> the part of a pipeline.
_TEXT_CLASSES = {"CLIPTextModel": "te1", "CLIPTextModelWithProjection": "te2"}


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """What a file holds.

    Attributes:
        adapter: with every scale folded in.
        alphas: alpha of each layer of the file, under its name there.
        header: entries of the safetensors header.
        format: how its keys are spelled.
        verdict: the family that it is for, and how that is known.
        dtype: of most of its numbers.
        states_alpha: whether it says what alpha is.
        spelled: module -> how the file spells it, for each family that it can be of.
    """

    adapter: Adapter
    alphas: Mapping[str, float]
    header: Mapping[str, str]
    format: str
    verdict: Verdict
    dtype: torch.dtype
    states_alpha: bool
    spelled: tuple[tuple[Family, Mapping[str, Spelling]], ...]


@dataclass(frozen=True)
class Pair:
    """One layer as a file holds it: its factor with alpha folded in, and its kernel."""

    key: Key
    factor: Factor
    kernel: Kernel | None
    alpha: float


def read(path: Path | str, family: Family | None = None) -> LoraFile:
    """Read a LoRA file or folder in any spelling.

    Args:
        path: a file, or a folder that holds one of a known name.
        family: the family that it is for, where names and shapes leave several.

    Raises:
        FileFormatError: the file is damaged, of another kind of adapter, contradicts itself, or has
            names that no known family has.
    """
    content = read_tensors(weights_file(Path(path)))
    return read_content(content, keys_of(content), family)


def read_content(content: Content, keys: Mapping[str, Key], family: Family | None) -> LoraFile:
    """What `read` makes of a file in memory and its keys."""
    for key, found in keys.items():
        if found.kind:
            raise refusal(content.path, key, found.kind)
    form = format_of(keys)
    config = configuration(content, form)
    if config.tag:
        keys = {key: replace(found, tag=config.tag) for key, found in keys.items()}
    pairs = list(_pairs(content, keys, config))
    states_alpha = (
        bool(config.rules)
        or "ss_network_alpha" in content.header
        or any(found.part == "alpha" for found in keys.values())
    )
    return assemble(content, pairs, form, family, states_alpha=states_alpha)


def format_of(keys: Mapping[str, Key]) -> str:
    """What keys that are spelled so are called."""
    formats = {found.format for found in keys.values()}
    return "comfyui" if len(formats) > 1 else formats.pop()


def assemble(
    content: Content, pairs: list[Pair], form: str, family: Family | None, *, states_alpha: bool
) -> LoraFile:
    """Join the layers of a file into an adapter.

    Raises:
        FileFormatError: a name is unknown or occurs in two spellings, or numbers are not finite.
    """
    resolved = resolve(content.path, shapes_of(pairs), content.header, family)
    factors: dict[str, Factor] = {}
    kernels: dict[str, Kernel] = {}
    for pair in pairs:
        for module, factor in _modules(pair, resolved):
            if module in factors:
                raise FileFormatError(
                    f"a LoRA file must have each module once, but {content.path} has {module} in "
                    "two spellings"
                )
            factors[module] = factor
            kernel = resolved.kernel(module, pair.kernel, factor.in_features)
            if kernel is not None:
                kernels[module] = kernel
    metadata = from_header(content.header)
    if family and stated_family(content.header) is not family:
        stated = {"modelspec.architecture": family.architecture}
        stated["ss_base_model_version"] = family.base_version
        metadata = replace(metadata, header={**metadata.header, **stated})
    try:
        adapter = Adapter(factors, metadata, kernels)
    except LayoutError as error:
        raise FileFormatError(f"{content.path} cannot be used: {error}") from error
    candidates = resolved.verdict.candidates
    types = Counter(t.dtype for key, t in content.tensors.items() if not key.endswith(".alpha"))
    return LoraFile(
        adapter=adapter,
        alphas={pair.key.spelled: pair.alpha for pair in pairs},
        header=content.header,
        format=form,
        verdict=resolved.verdict,
        dtype=types.most_common(1)[0][0],
        states_alpha=states_alpha,
        spelled=tuple((family, _spelled(content, resolved, family)) for family in candidates),
    )


def shapes_of(pairs: Iterable[Pair]) -> dict[Key, tuple[int, int]]:
    """The widths (in, out) of each layer of a file."""
    return {pair.key: (pair.factor.in_features, pair.factor.out_features) for pair in pairs}


def _spelled(content: Content, resolved: Resolved, family: Family) -> dict[str, Spelling]:
    """How the file spells each module of a family."""
    spelled = {}
    for key, layer in resolved.layers.items():
        for module in layer.modules:
            names = names_of(family, module, layer)
            prefix = key.spelled.removesuffix(key.name) if key.wrapped else key.prefix
            beside = key.ending != "du" and f"{key.spelled}.alpha" in content.tensors
            ending = f"{key.ending}+alpha" if beside else key.ending
            spelled[module] = Spelling(prefix, ending, names, key.name)
    return spelled


def _modules(pair: Pair, resolved: Resolved) -> Iterator[tuple[str, Factor]]:
    layer = resolved.layers[pair.key]
    if len(layer.modules) == 1:
        yield layer.modules[0], swap_halves(pair.factor) if layer.swapped else pair.factor
        return
    rows = layer.rows(pair.factor.out_features)
    assert rows is not None, "resolve() leaves none that cannot be shared out"
    for module, part in zip(layer.modules, separate(pair.factor, rows), strict=True):
        if part is not None:
            yield module, part


# Configurations


@dataclass(frozen=True)
class Configuration:
    """What a file's configuration says, if it has one.

    Attributes:
        rules: for alpha, by part of the pipeline; `*` for all.
        tag: the text encoder that a PEFT folder is for.
    """

    rules: Mapping[str, AlphaOf] = field(default_factory=dict)
    tag: str = ""

    def alpha(self, key: Key, rank: int) -> float:
        """Alpha of a layer; the rank where nothing is said."""
        rule = self.rules.get("*") or self.rules.get(key.prefix.rstrip("."))
        return rule(key.name, rank) if rule else float(rank)


def keys_of(content: Content) -> dict[str, Key]:
    """All keys of a file; of a PEFT folder of another kind of adapter its configuration names it.

    Raises:
        FileFormatError: see `parse_all`.
    """
    try:
        return parse_all(content.path, content.tensors)
    except FileFormatError:
        if (config := peft_config(content)) is not None:
            refuse_other_kinds(config, content.path)
        raise


def peft_config(content: Content) -> dict[str, Any] | None:
    """The configuration of a PEFT folder; None where there is none.

    Raises:
        FileFormatError: it cannot be read.
    """
    path = content.path.parent / PEFT_CONFIG
    if content.path.name != PEFT_WEIGHTS or not path.is_file():
        return None
    return read_config(path)


def configuration(content: Content, form: str, *, dora: bool = False) -> Configuration:
    """The configuration beside a file or in its header; `dora`: of DoRA too.

    Raises:
        FileFormatError: it is damaged, is missing, or is that of another kind of adapter.
    """
    if form == "peft" and content.path.name == PEFT_WEIGHTS:
        path = content.path.parent / PEFT_CONFIG
        config = peft_config(content)
        if config is None:
            raise FileFormatError(
                f"a PEFT adapter needs its configuration, which holds alpha, but there is no {path}"
            )
        mapping = config.get("auto_mapping")
        kind = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
        return Configuration(
            {"*": alpha_from(config, path, dora=dora)}, _TEXT_CLASSES.get(str(kind), "")
        )
    if form == "diffusers" and CONFIG_KEY in content.header:
        what = f"the header entry {CONFIG_KEY} of {content.path}"
        config = parse_config(content.header[CONFIG_KEY], what)
        parts: dict[str, dict[str, Any]] = {}
        for key, value in config.items():
            part, _, option = str(key).partition(".")
            parts.setdefault(part, {})[option] = value
        return Configuration(
            {part: alpha_from(rules, content.path, dora=dora) for part, rules in parts.items()}
        )
    return Configuration()


# Tensors


def grouped(
    content: Content, keys: Mapping[str, Key]
) -> Iterator[tuple[str, Key, dict[str, Tensor]]]:
    """Each layer as it is spelled, in their order: one of its keys, and its tensors by their parts.

    Raises:
        FileFormatError: a part is spelled in two ways, or holds no floating-point numbers.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    samples: dict[str, Key] = {}
    for key, found in keys.items():
        parts = groups.setdefault(found.spelled, {})
        part = found.part.removesuffix(".weight")
        if part in parts:
            raise FileFormatError(
                f"a LoRA file must have each key once, but {content.path} spells that of "
                f"{found.name[:200]} in two ways"
            )
        tensor = content.tensors[key]
        if part != "alpha":
            tensor = tensor.to(_usable(content.path, key, tensor.dtype))
        parts[part] = tensor
        if part != "alpha" or found.spelled not in samples:
            samples[found.spelled] = found
    for spelled in sorted(groups):
        yield spelled, samples[spelled], groups[spelled]


def _usable(path: Path, key: str, dtype: torch.dtype) -> torch.dtype:
    if dtype not in _TYPES:
        raise FileFormatError(
            "LoRA weights must be float64, float32, float16, bfloat16 or float8, but "
            f"{key[:200]} in {path} is {str(dtype).removeprefix('torch.')}: convert it with the "
            "program that made it"
        )
    return _TYPES[dtype]


def _pairs(content: Content, keys: Mapping[str, Key], config: Configuration) -> Iterator[Pair]:
    for spelled, sample, parts in grouped(content, keys):
        factor, kernel = pair_of(content.path, spelled, parts)
        stated: Tensor | float | None = parts.get("alpha")
        if stated is None:
            stated = config.alpha(sample, factor.rank)
        alpha = number(content.path, spelled, stated)
        yield Pair(sample, fold(factor, alpha / factor.rank), kernel, alpha)


def pair_of(path: Path, name: str, parts: Mapping[str, Tensor]) -> tuple[Factor, Kernel | None]:
    """A and B of a layer as matrices, and its kernel if it is a convolution.

    Raises:
        FileFormatError: one is missing, or shapes contradict.
    """
    for part, letter in (("down", "A"), ("up", "B")):
        if part not in parts:
            raise FileFormatError(
                f"every module of a LoRA file must have both its factors, but {path} has "
                f"{name[:200]} without its partner .lora_{part}.weight or .lora_{letter}.weight"
            )
    a, b = parts["down"], parts["up"]
    kernel = tuple(a.shape[2:]) if a.dim() > 2 else None
    fits = a.dim() == b.dim() in (2, 4, 5) and set(b.shape[2:]) <= {1}
    factor = Factor(a.flatten(1), b.flatten(1)) if fits else Factor(a, b)
    if not fits or 0 in (*a.shape, *b.shape) or factor.A.shape[0] != factor.B.shape[1]:
        raise FileFormatError(
            "A must be (r, in) and B (out, r), or of a convolution (r, in, h, w) and (out, r, 1, "
            f"1), with r at least 1, but {name[:200]} in {path} has {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    return factor, kernel


def number(path: Path, name: str, alpha: Tensor | float) -> float:
    """Alpha as one finite number.

    Raises:
        FileFormatError: it is none.
    """
    where = f"{name[:200]} in {path}"
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1:
            raise FileFormatError(
                f"alpha must be one number, but {where} has {tuple(alpha.shape)} of them"
            )
        if alpha.dtype not in _TYPES and alpha.dtype not in _INTEGERS:
            kind = str(alpha.dtype).removeprefix("torch.")
            raise FileFormatError(
                f"alpha must be a real number, but {where} is {kind}: convert the file with the "
                "program that made it"
            )
    if not math.isfinite(value := float(alpha)):
        raise FileFormatError(f"alpha must be finite, but {where} has {value}")
    return value


def fold(factor: Factor, scale: float) -> Factor:
    """Fold a scale into B; in float32 at least, since half precision could overflow."""
    if scale == 1:
        return factor
    dtype = torch.promote_types(factor.B.dtype, torch.float32)
    return Factor(factor.A.to(dtype), factor.B.to(dtype) * scale)
