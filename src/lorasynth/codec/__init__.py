"""Codecs: flat adapter vectors to latents and back.

`Scaled` compresses nothing, `PCA` is linear, `VAE` is linear at depth 1 and not beyond.  All keep
the contract of `contract.py`; others join by name or entry point (`lorasynth.codecs`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
