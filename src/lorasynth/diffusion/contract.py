"""What a noise schedule and a parameterisation must do; a solver is a function over both.

The process is x_t = alpha(t) x_0 + sigma(t) eps with eps ~ N(0, I) and t in [0, 1], from data at
t = 0 to noise at t = 1.  Time is continuous; everything that depends on the pair (alpha, sigma)
is written for any pair, so a flow-matching path (alpha = 1 - t, sigma = t) is one more `Schedule`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.core.registry import Registry

#: Maps noisy points x_t and their times to the expected clean points x_0.
Denoise = Callable[[Float[Tensor, "b *d"], Float[Tensor, " b"]], Float[Tensor, "b *d"]]

#: Noise levels sigma/alpha between which training times are drawn and solvers step.  The ends
#: themselves are singular: epsilon-prediction divides by alpha, v's loss weight by sigma.
NOISE_RANGE = (1e-2, 1e2)


class Schedule(ABC):
    """How signal and noise mix over time."""

    @abstractmethod
    def alpha(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The signal's factor, falling from 1 at t = 0 to 0 at t = 1."""

    @abstractmethod
    def sigma(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The noise's factor, rising from 0 at t = 0."""

    @abstractmethod
    def time(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Invert `log_snr`."""

    def log_snr(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """log(alpha^2 / sigma^2), falling in t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def times(self, uniform: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Spread numbers of [0, 1) evenly over the times inside `NOISE_RANGE`, for training."""
        levels = torch.tensor(NOISE_RANGE, dtype=torch.float64)
        ends = self.time(-2 * levels.log()).to(uniform)
        return ends[0] + (ends[1] - ends[0]) * uniform

    def mix(
        self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """The noisy point x_t = alpha x_0 + sigma eps (Ho et al. 2020, eq. 4)."""
        alpha, sigma = self.factors(t, x0)
        return alpha * x0 + sigma * eps

    def factors(self, t: Float[Tensor, " b"], like: Float[Tensor, "b *d"]) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, with axes appended so that they broadcast over `like`."""
        return over(self.alpha(t), like), over(self.sigma(t), like)


class Parameterisation(ABC):
    """What a denoiser predicts.

    Every parameterisation predicts an affine function of x_0 once x_t is known, so each is the
    same denoiser in another unit, which `to_x0` undoes; what distinguishes them is how their losses
    weigh the noise levels.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    @abstractmethod
    def target(
        self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """What the denoiser should predict at x_t."""

    @abstractmethod
    def to_x0(
        self,
        prediction: Float[Tensor, "b *d"],
        x_t: Float[Tensor, "b *d"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b *d"]:
        """The clean point that a prediction at x_t implies."""

    def affine(self, t: Float[Tensor, " s"]) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
        """`to_x0` as a x_t + b prediction: a and b at each time."""
        one, none = torch.ones_like(t), torch.zeros_like(t)
        return self.to_x0(none, one, t), self.to_x0(one, none, t)


def over(values: Float[Tensor, " b"], like: Float[Tensor, "b *d"]) -> Tensor:
    """Append axes to `values`, so that it broadcasts over `like`."""
    return values.to(like).reshape(-1, *[1] * (like.dim() - 1))


SCHEDULES: Registry[type[Schedule]] = Registry(
    "schedule", "lorasynth.schedules", "lorasynth.diffusion.schedule"
)
PARAMETERISATIONS: Registry[type[Parameterisation]] = Registry(
    "parameterisation", "lorasynth.parameterisations", "lorasynth.diffusion.parameterisation"
)
