"""A new adapter as a linear combination of those of a library (the paper's first approach).

The combination is one of canonical vectors, or of codec latents.  In the gauge `shared`, and with
a linear codec, it is also one of the updates ΔW.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lorasynth.adapter import Factors
from lorasynth.core.errors import ConfigError
from lorasynth.engine.descent import Descent
from lorasynth.optimise.contract import Coordinates, Decode, mean_square


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What mixtures may be.

    Attributes:
        simplex: coefficients are a softmax, so none is negative and they sum to one; False
            (default): they are free.
        penalty: weight of the mean square of the coefficients' distance from the mean adapter's,
            in units of the mean adapter's own coefficient, 1/N.
        descent: how the coefficients are found.
    """

    simplex: bool = False
    penalty: float = 0.0
    descent: Descent = field(
        default_factory=lambda: Descent(learning_rate=3.0, steps=200, clip=None)
    )

    def __post_init__(self) -> None:
        if self.penalty < 0:
            raise ConfigError(f"MixtureConfig.penalty must be at least 0, but is {self.penalty}")


class Mixture(Coordinates):
    """Mixtures of the N rows of a library; each starts as their mean.

    The numbers are in units of 1/N, so that one learning rate serves libraries of every size.

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
        super().__init__(config.descent, rows.new_zeros(subjects, len(rows)))
        self.config = config
        self.register_buffer("rows", rows)
        self.decode = decode

    @property
    def coefficients(self) -> Float[Tensor, "n N"]:
        """Of each library adapter in each mixture."""
        if self.config.simplex:
            return self.numbers.softmax(dim=1)
        return (1 + self.numbers) / len(self.rows)

    @override
    def forward(self) -> Factors:
        return self.decode(self.coefficients @ self.rows)

    @override
    def penalties(self) -> Float[Tensor, " n"]:
        return self.config.penalty * mean_square(self.coefficients * len(self.rows) - 1)
