"""Puts latents and conditions on the scale that a denoiser works at, and back."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: The smallest unit of a dimension, as a share of the root mean square unit: what (nearly) never
#: varies is not blown up to the size of the rest.
FLOOR = 1e-3


class Normaliser(nn.Module):
    """y = (x - mean) / unit per dimension.

    Noise is white in normalised units, so the units set how noise is spread over dimensions.
    """

    mean: Tensor
    unit: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("unit", torch.ones(width))

    def fit(self, x: Float[Tensor, "n w"], *, each: bool = True) -> "Normaliser":
        """Take mean and units from rows, and return itself.

        Args:
            x: rows.
            each: give each dimension a standard deviation of 1; otherwise one unit for all keeps
                the spectrum.  In both cases the mean square over all dimensions becomes 1.
        """
        self.mean = x.mean(0)
        std = x.std(0, correction=0)
        overall = std.square().mean().sqrt()
        relative = torch.where(overall > 0, std / overall, 1.0).clamp(min=FLOOR)
        unit = relative if each else torch.ones_like(relative)
        size = (std / unit).square().mean().sqrt()
        self.unit = unit * torch.where(size > 0, size, 1.0)
        return self

    def forward(self, x: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        """To normalised units."""
        return (x - self.mean) / self.unit

    def inverse(self, y: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        """Back from normalised units."""
        return y * self.unit + self.mean
