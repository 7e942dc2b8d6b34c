"""What is optimised in place of an adapter's own numbers: a few coordinates on a known manifold."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.adapter import Factors
from lorasynth.engine.descent import Descent

#: Rows of some coordinates -> stacked adapters; differentiable.
Decode = Callable[[Float[Tensor, "n k"]], Factors]


class Coordinates(nn.Module, ABC):
    """Adapters of n subjects, each a function of p numbers of its own.

    Args:
        descent: how the numbers are found.
        start: where they start.

    Attributes:
        numbers: what gradient descent moves.
    """

    def __init__(self, descent: Descent, start: Float[Tensor, "n p"]) -> None:
        super().__init__()
        self.descent = descent
        self.numbers = nn.Parameter(start.clone())

    @abstractmethod
    def forward(self) -> Factors:
        """The adapters as they follow from the numbers, stacked."""

    @abstractmethod
    def penalties(self) -> Float[Tensor, " n"]:
        """What is added to each subject's denoising loss, for its numbers alone."""


def mean_square(numbers: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
    """Mean square of each row; in the units of a denoising loss, which is a mean too."""
    return torch.mean(numbers.square(), dim=1)
