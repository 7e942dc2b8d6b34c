"""The hypernetwork: from a condition to an adapter's latent, by diffusion or by regression.

`contract.py` says what a denoiser and a modulation must do.  `lorasynth.hypernet.train` trains a
`LatentDiffusion`, which samples.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
