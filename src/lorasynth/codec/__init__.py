"""Codecs: flat adapter vectors to latents and back.

`Scaled` compresses nothing, `PCA` is linear, `VAE` is linear at depth 1 and not beyond.  All keep
the contract of `contract.py`; others join by name or entry point (`lorasynth.codecs`).
"""

from lorasynth.codec.contract import CODECS, Codec, VectorSource, fit_codec, load_codec
from lorasynth.codec.pca import PCA, PCAConfig
from lorasynth.codec.scaled import Scaled, ScaledConfig
from lorasynth.codec.vae import VAE, VAEConfig

__all__ = [
    "CODECS",
    "PCA",
    "VAE",
    "Codec",
    "PCAConfig",
    "Scaled",
    "ScaledConfig",
    "VAEConfig",
    "VectorSource",
    "fit_codec",
    "load_codec",
]
