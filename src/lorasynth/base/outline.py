"""The modules of a pipeline without its weights: what a LoRA file can be checked against.

Only the configurations of the parts are read, so this takes no memory and, from the hub, a few
kilobytes.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from lorasynth.adapter import Adapter
from lorasynth.adapter.components import DENOISER, TEXT_ENCODERS, component_of
from lorasynth.base.pipeline_files import classes_of, read_description
from lorasynth.errors import BaseModelError

_DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Outline:
    """The parts of a pipeline that adapters change, on the meta device.

    Attributes:
        name: folder, or hub:owner/name.
        parts: text encoders by their names, and the denoiser under `components.DENOISER`.
    """

    name: str
    parts: dict[str, nn.Module]

    def misfits(self, adapter: Adapter) -> list[str]:
        """What of an adapter does not fit, one line for each module; empty if all does."""
        lines = []
        for module in adapter.factors:
            reason = self._misfit(adapter, module)
            if reason:
                lines.append(f"{module}: {reason}")
        return lines

    def _misfit(self, adapter: Adapter, module: str) -> str | None:
        component = component_of(module)
        network = self.parts.get(component)
        if network is None:
            return f"the base model has no {component or 'denoiser'}"
        found = _find(network, module.removeprefix(f"{component}.") if component else module)
        if not isinstance(found, nn.Linear | nn.Conv2d):
            return "the base model has no such linear layer or convolution"
        kernel = tuple(found.kernel_size) if isinstance(found, nn.Conv2d) else None
        width = found.in_channels if isinstance(found, nn.Conv2d) else found.in_features
        expected = (width * math.prod(kernel or (1,)), found.weight.shape[0], kernel)
        factor = adapter.factors[module]
        stated = (factor.in_features, factor.out_features, adapter.kernels.get(module))
        if stated == expected:
            return None
        return f"it is {_said(stated)}, but the base model's is {_said(expected)}"


def _said(shape: tuple[int, int, tuple[int, ...] | None]) -> str:
    width, out, kernel = shape
    suffix = "" if kernel is None else f" with a kernel of {' x '.join(map(str, kernel))}"
    return f"{width} -> {out}{suffix}"


def _find(network: nn.Module, name: str) -> nn.Module | None:
    modules = dict(network.named_modules())
    # transformers 5 took the layer `text_model` out of CLIP's text encoder.
    return modules.get(name) or modules.get(name.removeprefix("text_model."))


def outline(name: str) -> Outline:
    """Read which modules a pipeline has.

    Args:
        name: the folder of a diffusers pipeline, or hub:owner/name.

    Raises:
        BaseModelError: it is not a pipeline, or lacks a part.
    """
    known = classes_of(name)
    parts = {part: known[part] for part in (*_DENOISERS, *TEXT_ENCODERS) if part in known}
    if not parts.keys() & set(_DENOISERS):
        raise BaseModelError(
            f"a base model must have a U-Net or a transformer, but {name} has "
            f"{', '.join(sorted(known))}"
        )
    with torch.device("meta"):
        built = {part: _build(name, part, *kind) for part, kind in parts.items()}
    return Outline(name, {DENOISER if p in _DENOISERS else p: m for p, m in built.items()})


def _build(name: str, part: str, library: str, kind: str) -> nn.Module:
    config = read_description(name, f"{part}/config.json")
    try:
        if library == "diffusers":
            network: nn.Module = _class(diffusers, kind, diffusers.ModelMixin).from_config(config)
        else:
            cls = _class(transformers, kind, transformers.PreTrainedModel)
            network = cls(cls.config_class.from_dict(config))
    except Exception as error:
        raise BaseModelError(
            f"{part} of {name} must be a {kind} of {library}, but cannot be built "
            f"({str(error).splitlines()[0]})"
        ) from error
    return network


def _class(library: ModuleType, name: str, base: type) -> Any:
    found = getattr(library, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TypeError(f"{name} is no network")
    return found
