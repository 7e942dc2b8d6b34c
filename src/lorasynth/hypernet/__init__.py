"""The hypernetwork: from a condition to an adapter's latent, by diffusion or by regression.

`contract.py` says what a denoiser and a modulation must do, and which losses and measurements may
come from outside.  `train` gives a `LatentDiffusion`, which samples.  Training is not re-exported
by name here: `lorasynth.hypernet.train` loads accelerate and diffusers, sampling needs neither.
"""

from lorasynth.hypernet.anchor import in_latents_of
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
from lorasynth.hypernet.denoiser_unet import UNetDenoiser, UNetDenoiserConfig
from lorasynth.hypernet.hypernetwork import HYPERNETWORKS, Hypernetwork, load_hypernet
from lorasynth.hypernet.latent_diffusion import LatentDiffusion, LatentDiffusionConfig
from lorasynth.hypernet.modulation import (
    AdaNorm,
    AdaNormConfig,
    LowRankModulation,
    LowRankModulationConfig,
)
from lorasynth.hypernet.probes import CleanError, GradientNorms
from lorasynth.hypernet.regression import LatentRegression, LatentRegressionConfig

__all__ = [
    "DENOISERS",
    "HYPERNETWORKS",
    "MODULATIONS",
    "AdaNorm",
    "AdaNormConfig",
    "CleanError",
    "Denoiser",
    "GradientNorms",
    "Hypernetwork",
    "LatentDiffusion",
    "LatentDiffusionConfig",
    "LatentRegression",
    "LatentRegressionConfig",
    "LowRankModulation",
    "LowRankModulationConfig",
    "MLPDenoiser",
    "MLPDenoiserConfig",
    "Modulation",
    "Objective",
    "Prediction",
    "Probe",
    "TrainingSet",
    "UNetDenoiser",
    "UNetDenoiserConfig",
    "in_latents_of",
    "load_hypernet",
]
