"""The formats of LoRA files that are written, each a few facts; and one writer for all of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorasynth.adapter.adapter import Adapter
from lorasynth.adapter.components import component_number, component_of, split
from lorasynth.adapter.factors import Factor, pad_rank
from lorasynth.adapter.families import (
    FLUX1,
    OTHER_UNET,
    Family,
    Verdict,
    family_of,
)
from lorasynth.adapter.families.contract import LANGUAGE, kind_of
from lorasynth.adapter.files.container import to_bytes
from lorasynth.adapter.files.fused import fuse, swap_halves
from lorasynth.adapter.files.header import CONFIG_KEY, MODULES_KEY, described
from lorasynth.adapter.files.peft_config import lora_config
from lorasynth.adapter.layout import Kernel
from lorasynth.adapter.names import Layer
from lorasynth.adapter.programs import COMFYUI, DIFFUSERS, Spelling, unread
from lorasynth.core.atomic import atomic_directory, write_bytes
from lorasynth.core.errors import FileFormatError
from lorasynth.core.registry import Registry

_PEFT_WEIGHTS, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_USUAL_NAME = "pytorch_lora_weights.safetensors"


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
            return path / _USUAL_NAME
        where = ", or be in a folder whose name has no ending" if self.name == "diffusers" else ""
        raise FileFormatError(
            f"a {self.name} file must be named *{self.suffix}{where}, but got {path}"
        )

    def write(self, adapter: Adapter, path: Path) -> Path:
        """Write an adapter atomically and return its `target`.

        Raises:
            FileFormatError: `path` is named as something else, or the format has no names for the
                adapter's layers.
        """
        target = self.target(path)
        data = self.encode(adapter)
        if self.suffix:
            write_bytes(target, data)
            return target
        config = {"peft_type": "LORA", "inference_mode": True}
        config |= lora_config(padded(adapter).factors)
        with atomic_directory(target) as folder:
            (folder / _PEFT_CONFIG).write_text(json.dumps(config, indent=1) + "\n")
            (folder / _PEFT_WEIGHTS).write_bytes(data)
        return target

    def encode(self, adapter: Adapter) -> bytes:
        """The bytes of the file with the weights; raises what `spell` does."""
        return to_bytes(*self.spell(adapter))

    def spell(self, adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Keys and tensors of the file with the weights, and the entries of its header.

        Raises:
            FileFormatError: the format has no names for the adapter's layers.
        """
        verdict = family_of(adapter.layout, adapter.metadata.header)
        adapter = padded(adapter)
        tensors: dict[str, Tensor] = {}
        layers = _spelled(self, adapter, verdict)
        for stem, (factor, kernel) in layers.items():
            a, b = factor
            if kernel is not None:
                a, b = a.unflatten(1, (-1, *kernel)), b[:, :, None, None]
            tensors |= {stem + self.down: a, stem + self.up: b}
            if self.underscored:
                tensors[f"{stem}.alpha"] = torch.tensor(float(factor.rank))
        rank = max(factor.rank for factor, _ in layers.values())
        known = verdict.family if verdict.family is not OTHER_UNET else None
        header = described(adapter.metadata, known, rank)
        if self.name == "diffusers":
            header[CONFIG_KEY] = _diffusers_config(adapter, verdict)
        if self.underscored and not verdict.candidates:
            header[MODULES_KEY] = json.dumps([m for m in adapter.factors if not component_of(m)])
        return tensors, header

    def spelling(self, adapter: Adapter, family: Family) -> dict[str, Spelling]:
        """How the format spells each module of an adapter of a family."""
        spelled = {}
        for module in adapter.factors:
            names, name, component = self.names(family), module, component_of(module)
            prefix = f"{family.denoiser}." if self.prefix is None else self.prefix
            if component:
                name = module.removeprefix(f"{component}.")
                stem = _text_stem(self, module, component, Verdict((family,), ""), numbered=True)
                prefix = stem.removesuffix(name.replace(".", "_") if self.underscored else name)
            elif (layer := family.table.layer_of(module)) and layer.modules == (layer.name,):
                names = "same"
            spelled[module] = Spelling(prefix, "du" if self.underscored else "AB", names, name)
        return spelled


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


def get_format(name: str) -> LoraFormat:
    """The format of that name.

    Raises:
        ConfigError: there is none.
    """
    return FORMATS.get(name)


def universal(adapter: Adapter) -> LoraFormat:
    """The format of which diffusers and ComfyUI lose least for the adapter's family: nothing."""
    verdict = family_of(adapter.layout, adapter.metadata.header)
    usual = verdict.shared(lambda family: family.universal) or "diffusers"
    if not any(not component_of(module) for module in adapter.factors):
        clip = all(".text_model." in module for module in adapter.factors)
        return get_format("kohya" if clip else "diffusers")
    if not _alike(verdict):
        return get_format(usual)

    def lost(name: str) -> int:
        spelled = get_format(name).spelling(adapter, verdict.candidates[0])
        return len(
            set[str]().union(*(unread(f, p, spelled) for f in verdict.candidates for p in _BOTH))
        )

    return get_format(min((usual, "kohya", "diffusers", "comfyui"), key=lost))


_BOTH = (DIFFUSERS, COMFYUI)
PROGRAMS = ("comfyui", "diffusers", "a1111", "peft", "ai-toolkit", "kohya")


def format_for(program: str, adapter: Adapter) -> LoraFormat:
    """The format in which a program reads an adapter.

    Args:
        program: one of `PROGRAMS`.
        adapter: what is to be read.

    Raises:
        FileFormatError: the program reads no LoRA of that family.
    """
    verdict = family_of(adapter.layout, adapter.metadata.header)
    families = [family for family in verdict.candidates if family is not OTHER_UNET]
    has_few = program in ("a1111", "kohya", "ai-toolkit") and families
    if has_few and not any(program in family.programs for family in families):
        raise FileFormatError(
            f"{program} must have models of the family, but it has none of {verdict.name}: choose "
            "another program"
        )
    if program == "comfyui" and verdict.name == "Sana":
        raise FileFormatError("ComfyUI has no Sana, so it reads no LoRA of it: use diffusers")
    if program == "comfyui":
        return universal(adapter)
    if program == "diffusers":
        return get_format("peft" if verdict.name == "PixArt" else "diffusers")
    if program == "ai-toolkit" and not all(f.denoiser == "unet" for f in families):
        return get_format("diffusers" if FLUX1 in families else "comfyui")
    return get_format({"peft": "peft"}.get(program, "kohya"))


def padded(adapter: Adapter) -> Adapter:
    """The adapter with one rank in each part of the pipeline, lower ones filled by zeros.

    diffusers 0.42 drops the alphas of a U-Net's attention where they differ in kohya's files, and
    swaps adapters while a pipeline runs only where ranks are equal.
    """
    ranks = {
        component: max(factor.rank for factor in factors.values())
        for component, factors in split(adapter.factors).items()
    }
    factors = {
        module: pad_rank(factor, ranks[component_of(module)])
        for module, factor in adapter.factors.items()
    }
    return Adapter(factors, adapter.metadata, adapter.kernels)


# Names

_Layers = dict[str, tuple[Factor, Kernel | None]]


def _spelled(form: LoraFormat, adapter: Adapter, verdict: Verdict) -> _Layers:
    """What the file holds, by the name of its layer there."""
    layers: _Layers = {}
    inside = any(not component_of(module) for module in adapter.factors)
    names = _names(form, verdict) if inside else "diffusers"
    prefix = f"{_denoiser(verdict, adapter)}." if form.prefix is None else form.prefix
    fused: dict[str, Layer] = {}
    numbered = any(component_of(module)[-2:-1] == "_" for module in adapter.factors)
    for module in adapter.factors:
        layer = Layer(module, (module,))
        component = component_of(module)
        if component:
            stem = _text_stem(form, module, component, verdict, numbered)
        else:
            if names == "published":
                layer = verdict.candidates[0].table.layer_of(module) or layer
            stem = prefix + (layer.name.replace(".", "_") if form.underscored else layer.name)
        if fused.setdefault(stem, layer) != layer:
            raise FileFormatError(
                f"{form.name} writes dots as underscores, but then {module} has the name of "
                "another module: choose another format"
            )
    for stem, layer in fused.items():
        layers[stem] = _joined(layer, adapter)
    return layers


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
    return len(verdict.candidates) == 1 or {f.name for f in verdict.candidates} == {
        "FLUX.1",
        "Chroma",
    }


def _denoiser(verdict: Verdict, adapter: Adapter) -> str:
    if verdict.candidates:
        return verdict.candidates[0].denoiser
    outermost = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "time_embedding.")
    return "unet" if any(m.startswith(outermost) for m in adapter.factors) else "transformer"


def _text_stem(
    form: LoraFormat, module: str, component: str, verdict: Verdict, numbered: bool
) -> str:
    """What a text encoder's layer is called; `numbered`: whether there is more than the first one.

    Raises:
        FileFormatError: the format, or the family, has no such text encoder.
    """
    if not form.text:
        raise FileFormatError(
            "a PEFT adapter changes one model, the U-Net or transformer, but this one changes "
            f"{component} too: choose diffusers or kohya"
        )
    inside = module.removeprefix(f"{component}.")
    families = [f for f in verdict.candidates if component_number(component) <= len(f.kinds)]
    if form.underscored:
        return _kohya_text(families, component, module, numbered) + inside.replace(".", "_")
    family = families[0] if len(families) == 1 else None
    name = family.text[component_number(component) - 1] if family else ""
    if form.prefix is None or kind_of(name) == LANGUAGE:
        return module
    return f"text_encoders.{name}.transformer.{inside}"


def _kohya_text(families: list[Family], component: str, module: str, numbered: bool) -> str:
    number = component_number(component)
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


def _joined(layer: Layer, adapter: Adapter) -> tuple[Factor, Kernel | None]:
    """The factor of a layer of the file, and its kernel."""
    parts = [adapter.factors.get(module) for module in layer.modules]
    if len(parts) == 1:
        [factor] = parts
        assert factor is not None
        kernel = adapter.kernels.get(layer.modules[0])
        return (swap_halves(factor) if layer.swapped else factor), kernel
    pairs = zip(parts, layer.shares, strict=True)
    unit = {part.out_features / share for part, share in pairs if part is not None}
    if len(unit) > 1:
        raise FileFormatError(
            f"{' and '.join(layer.modules)} are rows of one layer, {layer.name}, but have other "
            "heights than these: check that the file is of that family"
        )
    return fuse(parts, [round(share * next(iter(unit))) for share in layer.shares]), None


def _diffusers_config(adapter: Adapter, verdict: Verdict) -> str:
    denoiser = _denoiser(verdict, adapter)
    parts = split(adapter.factors)
    config: Mapping[str, object] = {
        f"{component or denoiser}.{key}": value
        for component, factors in parts.items()
        for key, value in lora_config(factors).items()
    }
    return json.dumps(config)


def _peft_folder(path: Path) -> Path:
    if path.suffix == ".safetensors" or path.is_file():
        raise FileFormatError(f"a PEFT adapter is a folder, but {path} names a file")
    if path.exists() and any(path.iterdir()) and not (path / _PEFT_CONFIG).exists():
        raise FileFormatError(
            f"only an empty folder or an older PEFT adapter is replaced, but {path} holds "
            "other files: choose another folder"
        )
    return path
