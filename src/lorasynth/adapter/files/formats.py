"""The formats of LoRA files that are written, each a few facts; and one writer for all of them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.components import component_number, component_of, split
from lorasynth.adapter.factors import Factor, Factors, pad_rank
from lorasynth.adapter.families import FLUX1, OTHER_UNET, Family, Verdict, family_of, stated_family
from lorasynth.adapter.families.contract import LANGUAGE, kind_of
from lorasynth.adapter.files.container import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    WEIGHT_NAMES,
    serialized,
    to_bytes,
    whole_file,
)
from lorasynth.adapter.files.fused import fuse, swap_halves
from lorasynth.adapter.files.header import CONFIG_KEY, MODULES_KEY, described
from lorasynth.adapter.files.peft_config import lora_config
from lorasynth.adapter.layout import Layout
from lorasynth.adapter.names import Layer
from lorasynth.adapter.programs import COMFYUI, DIFFUSERS, Spelling, names_of, unread
from lorasynth.core.atomic import atomic_directory, write_bytes
from lorasynth.core.errors import FileFormatError, LayoutError
from lorasynth.core.registry import Registry

#: Numbers of a file from which on it may not be padded to so many times its own.
_MOST_PADDED, _MOST_ZEROS = 1 << 28, 16


class Named(NamedTuple):
    """What a layer of a file is called, after its prefix, and of which modules it is."""

    prefix: str
    name: str
    layer: Layer


@dataclass(frozen=True, kw_only=True)
class LoraFormat:
    """How a format spells the keys of an adapter, and what it writes.

    Attributes:
        name: what it is called.
        down: ending of A's key.
        up: ending of B's key.
        suffix: ending of the names of what it writes; empty where that is a folder.
        names: which names of the denoiser's layers a family has in it: `published` or `diffusers`.
        prefix: what the denoiser's layers begin with; None: with the denoiser's name.
        underscored: whether dots are underscores, and alpha has a key.
        text: whether it has layers of text encoders.
    """

    name: str
    down: str = ".lora_A.weight"
    up: str = ".lora_B.weight"
    suffix: str = ".safetensors"
    names: Callable[[Family], str] = lambda _: "diffusers"
    prefix: str | None = None
    underscored: bool = False
    text: bool = True

    def target(self, path: Path) -> Path:
        """The file or folder that `write` writes, known before there is an adapter.

        Raises:
            FileFormatError: the name is that of something else.
        """
        if not self.suffix:
            return _peft_folder(path)
        if path.suffix == self.suffix:
            return path
        if self.name == "diffusers" and (not path.suffix or path.is_dir()):
            return path / WEIGHT_NAMES[1]
        where = ", or be in a folder whose name has no ending" if self.name == "diffusers" else ""
        kind = "LoRA" if self.name == "auto" else self.name
        raise FileFormatError(f"a {kind} file must be named *{self.suffix}{where}, but got {path}")

    def write(self, adapter: Adapter, path: Path) -> Path:
        """Write an adapter atomically and return its `target`.

        Raises:
            FileFormatError: `path` is named as something else, or the format has no names for the
                adapter's layers.
        """
        return self._write(adapter, to_bytes(*self.spell(adapter)), path)

    def _write(self, adapter: Adapter, data: bytes, path: Path) -> Path:
        target = self.target(path)
        if self.suffix:
            write_bytes(target, data)
            return target
        config = {"peft_type": "LORA", "inference_mode": True}
        config |= lora_config(padded(adapter.factors))
        with atomic_directory(target) as folder:
            (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=1) + "\n")
            (folder / PEFT_WEIGHTS).write_bytes(data)
        return target

    def spell(self, adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Keys and tensors of the file with the weights, and the entries of its header.

        Raises:
            FileFormatError: the format has no names for the adapter's layers.
        """
        verdict = _verdict(adapter.layout, stated_family(adapter.metadata.header))
        factors = padded(adapter.factors)
        tensors: dict[str, Tensor] = {}
        rank = 0
        for stem, named in _plan(self, adapter.layout, verdict).items():
            a, b = _joined(named.layer, factors)
            rank = max(rank, len(a))
            if self.underscored:
                tensors[f"{stem}.alpha"] = torch.tensor(float(len(a)))
            kernel = adapter.kernels.get(named.layer.modules[0])
            if kernel is not None and len(named.layer.modules) == 1:
                a, b = a.unflatten(1, (-1, *kernel)), b.reshape(*b.shape, *[1] * len(kernel))
            tensors |= {stem + self.down: a, stem + self.up: b}
        known = verdict.family if verdict.family is not OTHER_UNET else None
        header = described(adapter.metadata, known, rank)
        if self.name == "diffusers":
            header[CONFIG_KEY] = json.dumps(
                {
                    f"{component or _denoiser(verdict, adapter.layout)}.{key}": value
                    for component, part in split(factors).items()
                    for key, value in lora_config(part).items()
                }
            )
        if self.underscored and not verdict.candidates:
            header[MODULES_KEY] = json.dumps([m for m in factors if not component_of(m)])
        return tensors, header


class AutomaticFormat(LoraFormat):
    """The spelling that diffusers and ComfyUI both read exactly, which depends on the family."""

    def spell(self, adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What the format that `universal` chooses does."""
        return universal(adapter).spell(adapter)


FORMATS: Registry[LoraFormat] = Registry("LoRA format", "lorasynth.formats")
for _format in (
    AutomaticFormat(name="auto"),
    LoraFormat(name="diffusers"),
    LoraFormat(
        name="kohya",
        down=".lora_down.weight",
        up=".lora_up.weight",
        names=lambda family: family.kohya,
        prefix="lora_unet_",
        underscored=True,
    ),
    LoraFormat(name="comfyui", names=lambda family: family.comfyui, prefix="diffusion_model."),
    LoraFormat(name="peft", suffix="", prefix="base_model.model.", text=False),
):
    FORMATS.register(_format.name)(_format)


def write_many(
    form: LoraFormat,
    vectors: Float[Tensor, "n D"],
    layout: Layout,
    metadata: AdapterMetadata,
    paths: Sequence[Path],
) -> list[Path]:
    """Write the adapters of n vectors of a layout, one path each; returns what was written.

    Raises:
        LayoutError: a number is not finite; nothing is written.
        LorasynthError: see `LoraFormat.write`.
    """
    files = many_files(form, vectors, layout, metadata)
    first = Adapter.from_vector(vectors[0], layout, metadata)
    return [form._write(first, data, path) for data, path in zip(files, paths, strict=True)]


def many_files(
    form: LoraFormat, vectors: Float[Tensor, "n D"], layout: Layout, metadata: AdapterMetadata
) -> Iterator[bytes]:
    """The files of the adapters of n vectors of a layout, each as `LoraFormat.spell` has it.

    To spell takes longer than to synthesise, so it is done once, with an adapter whose numbers say
    which they are; all others have theirs in the same places.

    Raises:
        LayoutError: a number is not finite; there is no file then.
        FileFormatError: the format has no names for the adapter's layers.
    """
    if not torch.stack(vectors.aminmax()).isfinite().all():  # quicker than to look at each
        bad = int((~vectors.isfinite()).any(dim=1).nonzero()[0])
        raise LayoutError(
            f"all numbers of an adapter must be finite, but number {bad} of {len(vectors)} has NaN "
            "or infinite ones: synthesise or train it again"
        )
    return _spelled(form, vectors, layout, metadata)


def _spelled(
    form: LoraFormat, vectors: Float[Tensor, "n D"], layout: Layout, metadata: AdapterMetadata
) -> Iterator[bytes]:
    exact = vectors.dtype == torch.float32 and layout.size < 1 << 24  # whole numbers up to there
    if exact and len(vectors) > 1:
        numbered = -torch.arange(1.0, layout.size + 1)  # what a format adds is at least 0
        tensors, header = form.spell(Adapter.from_vector(numbered, layout, metadata))
        # The shape of layers that are fused depends on what they have in common.
        if sum(key.endswith(".weight") for key in tensors) == 2 * len(layout.slots):
            text, data = serialized(tensors)
            added = torch.frombuffer(bytearray(data), dtype=torch.float32)
            place = -added.clamp(max=0).long() - 1
            for vector in vectors.cpu():
                numbers = torch.where(place < 0, added, vector[place]).numpy().tobytes()
                yield whole_file(text, memoryview(numbers), header)
            return
    for vector in vectors:
        yield to_bytes(*form.spell(Adapter.from_vector(vector, layout, metadata)))


# For whom


def universal(adapter: Adapter) -> LoraFormat:
    """The format of which diffusers and ComfyUI lose least for the adapter's family: nothing."""
    return _of_least_loss(adapter, (DIFFUSERS, COMFYUI))


def _of_least_loss(adapter: Adapter, programs: tuple[str, ...]) -> LoraFormat:
    stated = stated_family(adapter.metadata.header)
    return FORMATS.get(_chosen(adapter.layout, stated, programs))


@lru_cache(maxsize=32)
def _chosen(layout: Layout, stated: Family | None, programs: tuple[str, ...]) -> str:
    """The format of which programs lose least; among equal ones the family's usual one."""
    verdict = _verdict(layout, stated)
    usual = verdict.shared(lambda family: family.universal) or "diffusers"
    if all(component_of(module) for module in layout.modules):
        clip = all(".text_model." in module for module in layout.modules)
        return "kohya" if clip else "diffusers"
    if not _alike(verdict):
        return usual

    def lost(name: str) -> int:
        form = FORMATS.get(name)
        try:
            plan = _plan(form, layout, verdict)
        except FileFormatError:
            return len(layout.slots) + 1
        modules = set[str]()
        for family in verdict.candidates:
            spelled = _spellings(form, plan, family)
            for program in programs:
                modules |= unread(family, program, spelled)
        return len(modules)

    return min((usual, "kohya", "diffusers", "comfyui"), key=lost)


def _spellings(form: LoraFormat, plan: Mapping[str, Named], family: Family) -> dict[str, Spelling]:
    """How a format spells each module of a family."""
    spelled = {}
    for prefix, name, layer in plan.values():
        for module in layer.modules:
            names = names_of(family, module, layer)
            spelled[module] = Spelling(prefix, "du" if form.underscored else "AB", names, name)
    return spelled


PROGRAMS = ("comfyui", "diffusers", "a1111", "peft", "ai-toolkit", "kohya")


def format_for(program: str, adapter: Adapter) -> LoraFormat:
    """The format in which a program, one of `PROGRAMS`, reads an adapter.

    Raises:
        FileFormatError: the program reads no LoRA of that family.
    """
    verdict = _verdict(adapter.layout, stated_family(adapter.metadata.header))
    families = [family for family in verdict.candidates if family is not OTHER_UNET]
    has_few = program in ("a1111", "kohya", "ai-toolkit") and families
    if has_few and not any(program in family.programs for family in families):
        raise FileFormatError(
            f"{program} must have models of the family, but it has none of {verdict.name}: choose "
            "another program"
        )
    if program == "comfyui" and families and families[0].comfyui_reads is None:
        raise FileFormatError(
            f"ComfyUI has no {verdict.name}, so it reads no LoRA of it: use diffusers"
        )
    if program == "comfyui":
        return _of_least_loss(adapter, (COMFYUI,))
    if program == "diffusers":
        return FORMATS.get("peft" if verdict.name == "PixArt" else "diffusers")
    if program == "ai-toolkit" and not all(f.denoiser == "unet" for f in families):
        return FORMATS.get("diffusers" if FLUX1 in families else "comfyui")
    return FORMATS.get("peft" if program == "peft" else "kohya")


def padded(factors: Factors) -> Factors:
    """Factors of one rank in each part of the pipeline, lower ones filled by zeros.

    diffusers 0.42 drops the alphas of a U-Net's attention where they differ in kohya's files, and
    swaps adapters while a pipeline runs only where ranks are equal.

    Raises:
        FileFormatError: ranks differ so much that the file would be mostly zeros.
    """
    ranks: dict[str, int] = {}
    for module, factor in factors.items():
        component = component_of(module)
        ranks[component] = max(ranks.get(component, 0), factor.rank)
    sizes = [(factor, ranks[component_of(module)]) for module, factor in factors.items()]
    whole = sum(rank * (f.in_features + f.out_features) for f, rank in sizes)
    if whole > _MOST_PADDED and whole > _MOST_ZEROS * sum(p.numel() for f, _ in sizes for p in f):
        raise FileFormatError(
            f"a file has one rank, but these layers have ranks up to {max(ranks.values())} and "
            "most of them far lower ones: lower the highest by `lorasynth resize` first"
        )
    return {m: pad_rank(factor, ranks[component_of(m)]) for m, factor in factors.items()}


# Names


@lru_cache(maxsize=32)
def _verdict(layout: Layout, stated: Family | None) -> Verdict:
    return family_of(layout, stated)


@lru_cache(maxsize=32)
def _plan(form: LoraFormat, layout: Layout, verdict: Verdict) -> Mapping[str, Named]:
    """What the file holds, by the whole name of its layer there.

    Raises:
        FileFormatError: the format has no names for the adapter's layers.
    """
    plan: dict[str, Named] = {}
    inside = any(not component_of(module) for module in layout.modules)
    names = _names(form, verdict) if inside else "diffusers"
    numbered = any(component_of(module)[-2:-1] == "_" for module in layout.modules)
    for module in layout.modules:
        layer = Layer(module, (module,))
        component = component_of(module)
        if component:
            prefix = _text_prefix(form, module, component, verdict, numbered)
            name = module.removeprefix(f"{component}.")
        else:
            prefix = f"{_denoiser(verdict, layout)}." if form.prefix is None else form.prefix
            if names == "published":
                layer = verdict.candidates[0].table.layer_of(module) or layer
            name = layer.name
        stem = prefix + (name.replace(".", "_") if form.underscored else name)
        if plan.setdefault(stem, Named(prefix, name, layer)).layer != layer:
            raise FileFormatError(
                f"{form.name} writes dots as underscores, but then {module} has the name of "
                "another module: choose another format"
            )
    return plan


def _names(form: LoraFormat, verdict: Verdict) -> str:
    """Whether layers have published or diffusers' names."""
    if not verdict.candidates:
        return "diffusers"
    names = verdict.shared(form.names)
    if names == "diffusers" or (names and _alike(verdict)):
        return names
    if all(family.denoiser == "unet" for family in verdict.candidates):
        return "diffusers"
    raise FileFormatError(
        f"{form.name} names the layers of each family in its own way, but these can be "
        f"{verdict.name}'s: say which with --family, or write diffusers' format"
    )


def _alike(verdict: Verdict) -> bool:
    """Whether all candidates publish the same names, as FLUX.1 and Chroma do."""
    keys = {family.key for family in verdict.candidates}
    return len(keys) == 1 or keys == {"flux1", "chroma"}


def _denoiser(verdict: Verdict, layout: Layout) -> str:
    if verdict.candidates:
        return verdict.candidates[0].denoiser
    outermost = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "time_embedding.")
    return "unet" if any(m.startswith(outermost) for m in layout.modules) else "transformer"


def _text_prefix(
    form: LoraFormat, module: str, component: str, verdict: Verdict, numbered: bool
) -> str:
    """What a text encoder's layers begin with; `numbered`: there is more than the first one.

    Raises:
        FileFormatError: the format, or the family, has no such text encoder.
    """
    if not form.text:
        raise FileFormatError(
            "a PEFT adapter changes one model, the U-Net or transformer, but this one changes "
            f"{component} too: choose diffusers or kohya"
        )
    number = component_number(component)
    families = [f for f in verdict.candidates if number <= len(f.kinds)]
    if not form.underscored:
        name = families[0].text[number - 1] if len(families) == 1 else ""
        if form.prefix is None or kind_of(name) == LANGUAGE:
            return f"{component}."
        return f"text_encoders.{name}.transformer."
    if families == [OTHER_UNET] and not numbered:
        return "lora_te_"
    prefixes = {family.kohya_prefix(component) for family in families}
    if len(prefixes) == 1:
        return prefixes.pop()
    if (number == 1 and "lora_te_" in prefixes) or not families:
        return "lora_te_" if number == 1 else f"lora_te{number}_"
    if number == 2 and ".text_model." in module:
        return "lora_te2_"
    raise FileFormatError(
        f"kohya numbers the text encoders of each family in its own way, but {module} can be of "
        f"{' or '.join(family.name for family in families)}: say which with --family"
    )


def _joined(layer: Layer, factors: Factors) -> Factor:
    """The factor of a layer of the file."""
    parts = [factors.get(module) for module in layer.modules]
    if len(parts) == 1:
        factor = factors[layer.modules[0]]
        return swap_halves(factor) if layer.swapped else factor
    pairs = zip(parts, layer.shares, strict=True)
    sizes = {(p.out_features / share, p.in_features) for p, share in pairs if p is not None}
    if len(sizes) > 1:
        raise FileFormatError(
            f"{' and '.join(layer.modules)} are rows of one layer, {layer.name}, but have other "
            "widths than these: check that the file is of that family"
        )
    [(unit, _)] = sizes
    return fuse(parts, [round(share * unit) for share in layer.shares])


def _peft_folder(path: Path) -> Path:
    if path.suffix == ".safetensors" or path.is_file():
        raise FileFormatError(f"a PEFT adapter is a folder, but {path} names a file")
    if path.exists() and any(path.iterdir()) and not (path / PEFT_CONFIG).exists():
        raise FileFormatError(
            f"only an empty folder or an older PEFT adapter is replaced, but {path} holds "
            "other files: choose another folder"
        )
    return path
