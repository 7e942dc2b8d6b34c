"""What the real loaders of diffusers and PEFT make of a file: the factors of each module."""

import inspect
import logging
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from architectures import ROWS, network
from peft import PeftModel
from torch import nn

from lorasynth.adapter import Factor

NAME = "probe"


def by_diffusers(family: str, path: Path) -> dict[str, Factor]:
    """What `load_lora_weights` changes in the denoiser, without a pipeline around it."""
    for name in ("diffusers", "peft"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    pipeline, model = getattr(diffusers, ROWS[family][2]), network(family)
    unet = family in ("sd1", "sd2", "sdxl")
    load = pipeline.load_lora_into_unet if unet else pipeline.load_lora_into_transformer
    options: dict[str, Any] = {"unet_config": model.config} if unet else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if "return_alphas" in inspect.getsource(pipeline.lora_state_dict):
                options["return_alphas"] = True
            state, *alphas, metadata = pipeline.lora_state_dict(
                str(path), return_lora_metadata=True, **options
            )
            into: dict[str, Any] = {"unet" if unet else "transformer": model}
            if "network_alphas" in inspect.signature(load).parameters:
                into["network_alphas"] = alphas[0] if alphas else None
            load(state, adapter_name=NAME, metadata=metadata, **into)
            return changed(model)
        finally:
            if getattr(model, "peft_config", None):
                model.unload_lora()


def by_peft(family: str, folder: Path) -> dict[str, Factor]:
    """What `PeftModel.from_pretrained` changes in the denoiser."""
    model = PeftModel.from_pretrained(network(family), folder, adapter_name=NAME)
    try:
        return {n.removeprefix("base_model.model."): f for n, f in changed(model).items()}
    finally:
        model.unload()


def changed(model: nn.Module) -> dict[str, Factor]:
    """The factors of PEFT's layers in a model, with their scale in B."""
    found = {}
    for name, layer in model.named_modules():
        lora = getattr(layer, "lora_A", {})
        if NAME in lora:
            a, b = (part[NAME].weight.detach() for part in (layer.lora_A, layer.lora_B))
            found[name] = Factor(a.flatten(1).float(), b.flatten(1).float() * layer.scaling[NAME])
    return found


def distance(one: Factor, other: Factor) -> float:
    """|ΔW - ΔW'| / |ΔW|, without the dense matrices."""
    A = torch.cat([one.A, other.A]).double()
    B = torch.cat([one.B, -other.B.double()], dim=1).double()
    error = ((B.mT @ B) * (A @ A.mT)).sum().clamp_min(0).sqrt()
    b, a = one.B.double(), one.A.double()
    return float(error / ((b.mT @ b) * (a @ a.mT)).sum().sqrt())


def exact(expected: Any, found: dict[str, Factor], tolerance: float = 1e-3) -> set[str]:
    """The modules that were read as they should be."""
    return {
        name
        for name, factor in expected.items()
        if name in found and distance(factor, found[name]) < tolerance
    }
