"""Diffusion on vectors, whatever they mean: noise schedule, what is predicted, solvers.

`contract.py` says what a `Schedule` and a `Parameterisation` must do; each lives in one short
class and joins by name.  Nothing here knows of adapters, codecs or conditions.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
