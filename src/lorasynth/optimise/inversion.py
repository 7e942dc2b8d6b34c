"""An adapter as the decoded latent that denoises the images best (the paper's second approach).

With a PCA of standardised weights and no prior it is the inversion of `weights2weights`.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lorasynth.adapter import Factors
from lorasynth.core.errors import ConfigError
from lorasynth.engine.descent import Descent
from lorasynth.optimise.contract import Coordinates, Decode, mean_square


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Which latents are likely.

    Attributes:
        prior: weight of the mean square of the latent in units of its spread, the negative
            logarithm of a Gaussian prior up to a factor; 0 leaves the data alone.
        equal_steps: steps are in units of each latent's spread, so that rare directions move as
            readily as frequent ones; False: all move alike, as in weights2weights.
        descent: how the latents are found.
    """

    prior: float = 1e-3
    equal_steps: bool = True
    descent: Descent = field(
        default_factory=lambda: Descent(learning_rate=0.1, steps=200, clip=None)
    )

    def __post_init__(self) -> None:
        if self.prior < 0:
            raise ConfigError(f"InversionConfig.prior must be at least 0, but is {self.prior}")


class Inversion(Coordinates):
    """Latents of n subjects under the Gaussian prior that a library's latents follow.

    Args:
        config: which latents are likely.
        subjects: n, how many latents.
        known: those of the library, whose mean and standard deviation are the prior's.
        decode: turns latents into adapters.
        start: where they start, such as what a synthesizer says; None: at the mean.
    """

    mean: Tensor
    spread: Tensor
    unit: Tensor

    def __init__(
        self,
        config: InversionConfig,
        subjects: int,
        known: Float[Tensor, "N k"],
        decode: Decode,
        start: Float[Tensor, "n k"] | None = None,
    ) -> None:
        mean, spread = known.mean(dim=0), known.std(dim=0)
        spread = spread.clamp(min=1e-6 * float(spread.max()))
        overall = spread.square().mean().sqrt()
        unit = spread if config.equal_steps else overall.expand_as(spread)
        start = mean.expand(subjects, -1) if start is None else start
        super().__init__(config.descent, (start - mean) / unit)
        self.config = config
        self.decode = decode
        for name, tensor in (("mean", mean), ("spread", spread), ("unit", unit)):
            self.register_buffer(name, torch.clone(tensor))

    @property
    def latents(self) -> Float[Tensor, "n k"]:
        """In the codec's units."""
        return self.mean + self.numbers * self.unit

    @override
    def forward(self) -> Factors:
        return self.decode(self.latents)

    @override
    def penalties(self) -> Float[Tensor, " n"]:
        return self.config.prior * mean_square(self.numbers * self.unit / self.spread)
