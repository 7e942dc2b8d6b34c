"""What a base model gives up in speed to need less memory."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from lorasynth.core.errors import BaseModelError, installing

#: Bits of a weight, in groups with a scale of their own: int8 (Dettmers et al. 2022) one scale a
#: row, nf4 (Dettmers et al. 2023) one for 64 numbers.
Quantised: TypeAlias = Literal["int8", "nf4"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How memory is saved; no option but `quantize` changes what is computed, but for rounding.

    Attributes:
        gradient_checkpointing: keep only what enters each block, and compute the rest again in the
            backward pass: about a third more time for a fraction of the memory of training.
        attention_slicing: compute a U-Net's attention in slices, for devices without a fused
            kernel, which never holds all scores.
        offload: denoiser, autoencoder and text encoders are on the device only while they are
            used, and else in main memory.
        quantize: how the linear layers of the denoiser's blocks are stored, by bitsandbytes; their
            products are computed in the base model's dtype, and adapters stay whole.
    """

    gradient_checkpointing: bool = False
    attention_slicing: bool = False
    offload: bool = False
    quantize: Quantised | None = None

    def apply(self, denoiser: Any, name: str) -> None:
        """Turn on in a denoiser of diffusers what is about its computations.

        Raises:
            BaseModelError: this kind of denoiser has no attention slicing.
        """
        if self.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
            if type(denoiser).__name__ == "ChromaTransformer2DModel":
                denoiser.register_forward_pre_hook(_pass_mask_on, with_kwargs=True)
        if not self.attention_slicing:
            return
        if not hasattr(denoiser, "set_attention_slice"):
            raise BaseModelError(
                f"attention slicing is for U-Nets, but {name} has a {type(denoiser).__name__}, "
                "whose attention never holds all scores: leave it out"
            )
        denoiser.set_attention_slice("auto")


def _pass_mask_on(denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
    """Give Chroma's single blocks the mask that diffusers (0.42) drops when it checkpoints them."""
    checkpoint = denoiser._gradient_checkpointing_func
    checkpoint = getattr(checkpoint, "plain", checkpoint)
    mask = kwargs.get("attention_mask")

    def masked(block: Any, *inputs: Any) -> Any:
        single = "Single" in type(block).__name__ and len(inputs) == 3
        return checkpoint(block, *inputs, *([mask] if single else []))

    vars(masked)["plain"] = checkpoint
    denoiser._gradient_checkpointing_func = masked


def quantise(denoiser: nn.Module, how: Quantised, device: Any, dtype: torch.dtype) -> None:
    """Store the linear layers of a denoiser's blocks in 8 or 4 bits.

    Args:
        denoiser: with whole weights.
        how: see `Memory`.
        device: where each layer is stored, and then stays.
        dtype: of its inputs and outputs.

    Raises:
        BaseModelError: bitsandbytes is not here.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that are but faster
    try:
        from bitsandbytes import nn as quantised
    except ImportError as error:
        raise BaseModelError(
            f"--quantize {how} needs bitsandbytes, which is not installed: "
            f"{installing('quantize')}, or leave it out"
        ) from error

    def stored(layer: nn.Linear) -> nn.Module:
        sizes, bias = (layer.in_features, layer.out_features), layer.bias
        with torch.device("meta"):
            made: Any = (
                quantised.Linear8bitLt(*sizes, bias is not None, has_fp16_weights=False)
                if how == "int8"
                else quantised.Linear4bit(*sizes, bias is not None, dtype, False, "nf4")
            )
        weight = layer.weight.data
        made.weight = (
            quantised.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            if how == "int8"
            else quantised.Params4bit(
                weight, False, compress_statistics=False, quant_type="nf4", module=made
            )
        )
        made.bias = bias
        return made.to(device)  # type: ignore[no-any-return]

    replace_linears(denoiser, stored)


def replace_linears(denoiser: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put others in place of the linear layers of a denoiser's blocks, which are numbered."""
    for path, module in list(denoiser.named_modules()):
        for name, layer in list(module.named_children()):
            inside = any(part.isdigit() for part in path.split("."))
            if inside and type(layer) is nn.Linear:
                setattr(module, name, make(layer))
