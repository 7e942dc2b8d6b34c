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
        # Periods from 1/1000 of the whole process to 10 times it.  In plain Python: torch.arange on
        # the meta device imports torch's compiler, which takes seconds.
        exponents = (-math.log(10_000) * place / max(count - 1, 1) for place in range(count))
        self.register_buffer("frequencies", torch.tensor([1000 * math.exp(e) for e in exponents]))
        self.mlp = nn.Sequential(nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b tw"]:
        """Embed times in [0, 1]."""
        angles = t[:, None] * self.frequencies
        out: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        return out
