"""How a denoiser is told the time."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time (Vaswani et al. 2017, sec. 3.5), then a small network."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        count = width // 2
        # Periods from 1/1000 of the whole process to 10 times it.
        exponents = -math.log(10_000) * torch.arange(count) / max(count - 1, 1)
        self.register_buffer("frequencies", 1000 * exponents.exp())
        self.mlp = nn.Sequential(nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b tw"]:
        """Embed times in [0, 1]."""
        angles = t[:, None] * self.frequencies
        out: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        return out
