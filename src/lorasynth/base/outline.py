"""The modules of a pipeline without its weights: what a LoRA file can be checked against.

Only the configurations of the parts are read, so this takes no memory and, from the hub, a few
kilobytes.
"""

import inspect
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import diffusers
import safetensors
import torch
import transformers
from torch import Tensor, nn

from lorasynth.adapter import Layout, Slot
from lorasynth.adapter.components import DENOISER, TEXT_ENCODERS, component_of
from lorasynth.base.pipeline_files import classes_of, read_description, weights_here
from lorasynth.core.errors import BaseModelError, reason_of
from lorasynth.core.places import folder_of, public_name, repository
from lorasynth.core.weights import fingerprint_of

_DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Outline:
    """The parts of a pipeline that adapters change, on the meta device.

    Attributes:
        name: its id on the hub, or the last name of its folder's path.
        parts: text encoders by their names, and the denoiser under `components.DENOISER`.
        source: its folder, or hub:owner/name.
        denoiser: the denoiser's name in it.
    """

    name: str
    parts: dict[str, nn.Module]
    source: str
    denoiser: str

    def stored_fingerprint(self) -> str:
        """That of the denoiser's weights; "" where they are not here."""
        return stored_fingerprint(self.source, self.denoiser, self.parts[DENOISER])

    def misfits(self, layout: Layout) -> list[str]:
        """What of adapters does not fit, one line for each module; empty if all does."""
        reasons = ((slot.module, self._misfit(slot)) for slot in layout.slots)
        return [f"{module}: {reason}" for module, reason in reasons if reason]

    def _misfit(self, slot: Slot) -> str | None:
        component = component_of(slot.module)
        network = self.parts.get(component)
        if network is None:
            return f"the base model has no {component or 'denoiser'}"
        name = slot.module.removeprefix(f"{component}.") if component else slot.module
        found = _find(network, name)
        if not isinstance(found, nn.Linear | nn.Conv2d | nn.Conv3d):
            return "the base model has no such linear layer or convolution"
        kernel = tuple(found.kernel_size) if isinstance(found, nn.Conv2d | nn.Conv3d) else None
        width = found.in_channels if isinstance(found, nn.Conv2d | nn.Conv3d) else found.in_features
        expected = (width * math.prod(kernel or (1,)), found.weight.shape[0], kernel)
        stated = (slot.in_features, slot.out_features, slot.kernel)
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
    built = {part: build_part(name, part, *kind) for part, kind in parts.items()}
    named = {DENOISER if part in _DENOISERS else part: m for part, m in built.items()}
    denoiser = next(part for part in parts if part in _DENOISERS)
    return Outline(public_name(name), named, name, denoiser)


def outlined_pipeline(name: str, pipeline_class: type[Any]) -> Any:
    """A pipeline whose networks are on the meta device, without tokenizers.

    Args:
        name: folder of the pipeline, or hub:owner/name.
        pipeline_class: of diffusers.

    Raises:
        BaseModelError: a part is missing, or cannot be built.
    """
    index = read_description(name, "model_index.json")
    parts: dict[str, Any] = {}
    for part, kind in classes_of(name).items():
        if part == "scheduler":
            config = read_description(name, "scheduler/scheduler_config.json")
            scheduler = _class(diffusers, kind[1], diffusers.SchedulerMixin)
            parts[part] = scheduler.from_config(config)
        elif part in (*_DENOISERS, "vae", *TEXT_ENCODERS):
            parts[part] = build_part(name, part, *kind)
    taken = inspect.signature(pipeline_class).parameters
    missing = {
        part: index.get(part) if isinstance(index.get(part), bool) else None
        for part, parameter in taken.items()
        if parameter.default is inspect.Parameter.empty or isinstance(index.get(part), bool)
    }
    return pipeline_class(**{**missing, **parts})


def stored_fingerprint(name: str, part: str, network: nn.Module) -> str:
    """The fingerprint of a network's stored weights, of which a few values are read.

    Args:
        name: folder of the pipeline, or hub:owner/name, of which what was fetched is read.
        part: the network's name in it.
        network: the network, on any device; says which tensors there are.

    Returns:
        "" where the weights are not here, or not stored under the network's own names.
    """
    tensors: dict[str, Tensor] = {}
    for path in weights_here(name, part):
        with safetensors.safe_open(path, framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return fingerprint_of(tensors) if tensors.keys() == network.state_dict().keys() else ""


def build_part(name: str, part: str, library: str, kind: str) -> nn.Module:
    """A network of a pipeline on the meta device, by its configuration.

    Args:
        name: folder of the pipeline, or hub:owner/name.
        part: the network's name in it.
        library: diffusers or transformers.
        kind: its class there.

    Raises:
        BaseModelError: it cannot be built.
    """
    config = read_description(name, f"{part}/config.json")
    try:
        with torch.device("meta"):
            return _built(config, library, kind)
    except Exception as error:
        raise BaseModelError(
            f"{part} of {name} must be a {kind} of {library}, but cannot be built "
            f"({reason_of(error)})"
        ) from error


def _built(config: dict[str, Any], library: str, kind: str) -> nn.Module:
    if library == "diffusers":
        network: nn.Module = _class(diffusers, kind, diffusers.ModelMixin).from_config(config)
    else:
        cls = _class(transformers, kind, transformers.PreTrainedModel)
        network = cls(cls.config_class.from_dict(config))
    return network


def _class(library: ModuleType, name: str, base: type) -> Any:
    found = getattr(library, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TypeError(f"{name} is no network")
    return found


def with_tokenizers(pipeline: Any, name: str) -> None:
    """Give an outlined pipeline its tokenizers, which are small.

    Args:
        pipeline: on the meta device.
        name: that it was read by: a folder, or hub:owner/name.

    Raises:
        BaseModelError: one cannot be loaded.
    """
    source = repository(name) or folder_of(name, "a base model", BaseModelError)
    for part, (library, kind) in classes_of(name).items():
        if not part.startswith("tokenizer"):
            continue
        try:
            tokenizer = _class(transformers, kind, transformers.PreTrainedTokenizerBase)
            loaded = tokenizer.from_pretrained(source, subfolder=part, trust_remote_code=False)
        except Exception as error:
            raise BaseModelError(
                f"a base model's {part} must be a {kind} of {library}, but that of {name} cannot "
                f"be loaded ({(str(error).splitlines() or [''])[0]})"
            ) from error
        pipeline.register_modules(**{part: loaded})
        if part == "tokenizer" and hasattr(pipeline, "tokenizer_max_length"):
            pipeline.tokenizer_max_length = loaded.model_max_length
