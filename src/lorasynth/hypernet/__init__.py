"""The hypernetwork: from a condition to an adapter's latent, by diffusion or by regression.

`contract.py` says what a denoiser and a modulation must do, and which losses and measurements may
come from outside.  `train` gives a `LatentDiffusion`, which samples.  Training is not re-exported
by name here: `lorasynth.hypernet.train` loads accelerate and diffusers, sampling needs neither.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
