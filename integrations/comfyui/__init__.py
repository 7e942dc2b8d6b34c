"""lorasynth in ComfyUI: a LoRA from one photo, without training, applied to MODEL and CLIP."""

from .nodes import comfy_entrypoint as comfy_entrypoint
