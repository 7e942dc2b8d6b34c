"""The hypernetwork: diffusion over adapter latents, steered by a condition.

`contract.py` says what a denoiser and a modulation must do, and which losses and measurements may
come from outside.  `train` gives a `LatentDiffusion`, which samples.  Training is not re-exported
by name here: `lorasynth.hypernet.train` loads accelerate and diffusers, sampling needs neither.
"""

from lorasynth.hypernet.batches import TrainingSet
from lorasynth.hypernet.contract import (
    DENOISERS,
    MODULATIONS,
    Denoiser,
    Modulation,
    Objective,
    Prediction,
    Probe,
)
from lorasynth.hypernet.denoiser_mlp import MLPDenoiser, MLPDenoiserConfig
from lorasynth.hypernet.latent_diffusion import LatentDiffusion, LatentDiffusionConfig
from lorasynth.hypernet.modulation import (
    AdaNorm,
    AdaNormConfig,
    LowRankModulation,
    LowRankModulationConfig,
)
from lorasynth.hypernet.probes import CleanError

__all__ = [
    "DENOISERS",
    "MODULATIONS",
    "AdaNorm",
    "AdaNormConfig",
    "CleanError",
    "Denoiser",
    "LatentDiffusion",
    "LatentDiffusionConfig",
    "LowRankModulation",
    "LowRankModulationConfig",
    "MLPDenoiser",
    "MLPDenoiserConfig",
    "Modulation",
    "Objective",
    "Prediction",
    "Probe",
    "TrainingSet",
]
