"""Base models, and many adapters attached to one of them in a single batch."""

from lorasynth.base.stable_diffusion import BaseModel, SamplingConfig
from lorasynth.base.stacked import StackedAdapters

__all__ = ["BaseModel", "SamplingConfig", "StackedAdapters"]
