"""lorasynth in ComfyUI: a LoRA from one photo, without training, applied to MODEL and CLIP."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
