"""Diffusion on vectors, whatever they mean: noise schedule, what is predicted, solvers, averaging.

`contract.py` says what a `Schedule` and a `Parameterisation` must do; each lives in one short
class and joins by name.  Nothing here knows of adapters, codecs or conditions.  `ema.py` is not
re-exported: only training needs it, and it loads diffusers (seconds).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
