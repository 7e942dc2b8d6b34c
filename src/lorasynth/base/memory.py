"""What a base model gives up in speed to need less memory."""

from dataclasses import dataclass
from typing import Any

from lorasynth.core.errors import BaseModelError


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How the denoiser saves memory; no option changes what it computes, but for rounding.

    Attributes:
        gradient_checkpointing: keep only what enters each block, and compute the rest again in the
            backward pass: about a third more time for a fraction of the memory of training.
        attention_slicing: compute a U-Net's attention in slices, for devices without a fused
            kernel, which never holds all scores.
    """

    gradient_checkpointing: bool = False
    attention_slicing: bool = False

    def apply(self, denoiser: Any, name: str) -> None:
        """Turn the options on in a denoiser of diffusers.

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
