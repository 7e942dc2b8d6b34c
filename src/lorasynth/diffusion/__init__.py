"""Diffusion on vectors, whatever they mean: noise schedule, what is predicted, solvers, averaging.

`contract.py` says what a `Schedule` and a `Parameterisation` must do; each lives in one short
class and joins by name.  Nothing here knows of adapters, codecs or conditions.  `ema.py` is not
re-exported: only training needs it, and it loads diffusers (seconds).
"""

from lorasynth.diffusion.contract import (
    PARAMETERISATIONS,
    SCHEDULES,
    Denoise,
    Parameterisation,
    Schedule,
)
from lorasynth.diffusion.parameterisation import X0, Epsilon, Flow, Velocity
from lorasynth.diffusion.sampler import Solver, sample, solver_times
from lorasynth.diffusion.schedule import Cosine, Linear, discretise

__all__ = [
    "PARAMETERISATIONS",
    "SCHEDULES",
    "X0",
    "Cosine",
    "Denoise",
    "Epsilon",
    "Flow",
    "Linear",
    "Parameterisation",
    "Schedule",
    "Solver",
    "Velocity",
    "discretise",
    "sample",
    "solver_times",
]
