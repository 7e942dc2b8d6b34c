"""What a denoiser predicts: the clean point, the noise, or a velocity between them."""

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lorasynth.diffusion.contract import PARAMETERISATIONS, Parameterisation


@PARAMETERISATIONS.register("x0")
class X0(Parameterisation):
    """The clean point itself (Ho et al. 2020, sec. 3.2; the paper's 4.3)."""

    @override
    def target(
        self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        return x0

    @override
    def to_x0(
        self,
        prediction: Float[Tensor, "b *d"],
        x_t: Float[Tensor, "b *d"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b *d"]:
        return prediction


@PARAMETERISATIONS.register("v")
class Velocity(Parameterisation):
    """v = alpha eps - sigma x_0 (Salimans & Ho 2022, sec. 4; the paper's 4.4, eq. 3).

    Well conditioned at every noise level.  Written for any schedule: on a variance-preserving one
    alpha^2 + sigma^2 = 1 drops out.
    """

    @override
    def target(
        self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        alpha, sigma = self.schedule.factors(t, x0)
        return alpha * eps - sigma * x0

    @override
    def to_x0(
        self,
        prediction: Float[Tensor, "b *d"],
        x_t: Float[Tensor, "b *d"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b *d"]:
        alpha, sigma = self.schedule.factors(t, x_t)
        return (alpha * x_t - sigma * prediction) / (alpha.square() + sigma.square())


@PARAMETERISATIONS.register("epsilon")
class Epsilon(Parameterisation):
    """The noise (Ho et al. 2020, eq. 14); magnifies errors where little signal is left."""

    @override
    def target(
        self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        return eps

    @override
    def to_x0(
        self,
        prediction: Float[Tensor, "b *d"],
        x_t: Float[Tensor, "b *d"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b *d"]:
        alpha, sigma = self.schedule.factors(t, x_t)
        return (x_t - sigma * prediction) / alpha
