"""A few coordinates on a known manifold, optimised in place of an adapter's own factors.

The paper's first approach is a linear combination of a library's adapters (`Mixture`), its second
the decoded latent that denoises the images best (`Inversion`).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lorasynth.adapter import Factors
from lorasynth.engine import OptimizerConfig, Trainable
from lorasynth.optimise.config import InversionConfig, MixtureConfig

#: Rows of some coordinates -> stacked adapters; differentiable.
Decode = Callable[[Float[Tensor, "n k"]], Factors]


class Coordinates(Trainable):
    """Adapters of n subjects, each a function of p values of its own.

    Args:
        config: how the values are found.
        start: where they start.
        decode: turns rows of coordinates into adapters.

    Attributes:
        values: what gradient descent moves.
    """

    def __init__(
        self, config: OptimizerConfig, start: Float[Tensor, "n p"], decode: Decode
    ) -> None:
        super().__init__(config)
        self.values = nn.Parameter(start.clone())
        self.decode = decode


class Mixture(Coordinates):
    """Mixtures of a library's N canonical vectors or latents; each starts as their mean.

    The values are in units of 1/N, so that one learning rate serves libraries of every size.  In
    the gauge `shared`, and with a linear codec, it is also a mixture of the updates ΔW.

    Args:
        config: what mixtures may be.
        subjects: n, how many mixtures.
        rows: what is mixed: vectors, or latents.
        decode: turns mixed rows into adapters.
    """

    rows: Tensor

    def __init__(
        self, config: MixtureConfig, subjects: int, rows: Float[Tensor, "N k"], decode: Decode
    ) -> None:
        super().__init__(config.optimizer, rows.new_zeros(subjects, len(rows)), decode)
        self.allowed = config
        self.register_buffer("rows", rows)

    @property
    def coefficients(self) -> Float[Tensor, "n N"]:
        """Of each library adapter in each mixture."""
        if self.allowed.simplex:
            return self.values.softmax(dim=1)
        return (1 + self.values) / len(self.rows)

    @override
    def forward(self) -> Factors:
        return self.decode(self.coefficients @ self.rows)

    @override
    def penalties(self) -> Float[Tensor, " n"]:
        distance = self.coefficients * len(self.rows) - 1
        return self.allowed.penalty * distance.square().mean(dim=1)


class Inversion(Coordinates):
    """Latents of n subjects under the Gaussian prior that a library's latents follow.

    With a PCA of standardised weights and no prior it is the inversion of `weights2weights`.

    Args:
        config: which latents are likely.
        subjects: n, how many latents.
        known: those of the library, whose mean and standard deviation are the prior's.
        decode: turns latents into adapters.
        start: where they start, such as what a synthesizer predicts; None: at the mean.
    """

    mean: Tensor
    deviation: Tensor
    unit: Tensor

    def __init__(
        self,
        config: InversionConfig,
        subjects: int,
        known: Float[Tensor, "N k"],
        decode: Decode,
        start: Float[Tensor, "n k"] | None = None,
    ) -> None:
        mean, deviation = known.mean(dim=0), known.std(dim=0)
        deviation = deviation.clamp(min=1e-6 * float(deviation.max()))
        overall = deviation.square().mean().sqrt()
        unit = deviation if config.equal_steps else overall.expand_as(deviation)
        start = mean.expand(subjects, -1) if start is None else start
        super().__init__(config.optimizer, (start - mean) / unit, decode)
        self.prior = config.prior
        for name, tensor in (("mean", mean), ("deviation", deviation), ("unit", unit)):
            self.register_buffer(name, torch.clone(tensor))

    @property
    def latents(self) -> Float[Tensor, "n k"]:
        """In the codec's units."""
        return self.mean + self.values * self.unit

    @override
    def forward(self) -> Factors:
        return self.decode(self.latents)

    @override
    def penalties(self) -> Float[Tensor, " n"]:
        return self.prior * (self.values * self.unit / self.deviation).square().mean(dim=1)
