"""Base models, and many adapters attached to one of them in a single batch."""

from lorasynth.base.contract import BASE_MODELS, MEASURED, BaseModel, SamplingConfig
from lorasynth.base.flux import Flux
from lorasynth.base.memory import Memory
from lorasynth.base.sdxl import StableDiffusionXL
from lorasynth.base.stable_diffusion import StableDiffusion
from lorasynth.base.stacked import StackedAdapters
from lorasynth.base.texts import Texts

__all__ = [
    "BASE_MODELS",
    "MEASURED",
    "BaseModel",
    "Flux",
    "Memory",
    "SamplingConfig",
    "StableDiffusion",
    "StableDiffusionXL",
    "StackedAdapters",
    "Texts",
]
