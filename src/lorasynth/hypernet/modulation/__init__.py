"""How a condition enters a denoiser's layers: `AdaNorm`, and the paper's AdaLoRA layer."""

from lorasynth.hypernet.modulation.ada_norm import AdaNorm, AdaNormConfig, ScaleAndShift
from lorasynth.hypernet.modulation.low_rank import LowRankModulation, LowRankModulationConfig

__all__ = [
    "AdaNorm",
    "AdaNormConfig",
    "LowRankModulation",
    "LowRankModulationConfig",
    "ScaleAndShift",
]
