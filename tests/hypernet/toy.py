"""A problem whose answer is known: z | c ~ N(W c, S^2), with c on the unit sphere."""

from typing import Any

import torch
from torch import Tensor

from lorasynth.engine.trainer import Optimisation
from lorasynth.hypernet import HypernetConfig, LatentDiffusionConfig, TrainingSet

K, M = 8, 4
SPREAD = 0.3
_W = torch.randn(K, M, generator=torch.Generator().manual_seed(7))


def conditions(n: int, seed: int) -> Tensor:
    c = torch.randn(n, M, generator=torch.Generator().manual_seed(seed))
    return c / c.norm(dim=1, keepdim=True)


def truth(c: Tensor) -> Tensor:
    """The mean of the latents under a condition; far from 0 and of unequal sizes."""
    return c @ _W.T * torch.linspace(2, 0.5, K) + 3


def data(n: int = 2000, images: int = 2) -> TrainingSet:
    c = conditions(n, seed=1)
    noise = torch.randn(n, K, generator=torch.Generator().manual_seed(2))
    return TrainingSet(
        latents=truth(c) + SPREAD * noise, conditions=c[:, None].expand(-1, images, -1)
    )


def config(steps: int = 300, **model: Any) -> HypernetConfig:
    options = {"width": 64, "depth": 2, "embedding": 32} | model.pop("denoiser_options", {})
    return HypernetConfig(
        model=LatentDiffusionConfig(denoiser_options=options, **model),
        optimisation=Optimisation(steps=steps, batch=128, lr=3e-3, warmup=20, ema=0.97),
        record_every=100,
    )
