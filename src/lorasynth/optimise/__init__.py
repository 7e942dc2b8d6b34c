"""Adapters found by gradient descent on few numbers: mixtures of a library, latents of a codec."""

from lorasynth.optimise import weights2weights
from lorasynth.optimise.contract import Coordinates, Decode
from lorasynth.optimise.full import fine_tune, weights_of
from lorasynth.optimise.inversion import Inversion, InversionConfig
from lorasynth.optimise.mixture import Mixture, MixtureConfig
from lorasynth.optimise.personalise import Personalised, personalise

__all__ = [
    "Coordinates",
    "Decode",
    "Inversion",
    "InversionConfig",
    "Mixture",
    "MixtureConfig",
    "Personalised",
    "fine_tune",
    "personalise",
    "weights2weights",
    "weights_of",
]
