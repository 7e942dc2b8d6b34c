"""Distributions of latents that need no training beyond the codec's.

`lorasynth.hypernet` adds another that does: diffusion without a condition.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.core.randomness import torch_stream
from lorasynth.core.registry import Registry

#: From a library's latents, names and a seed to one latent per name, in the units of the library's;
#: each depends on its name alone.
Prior: TypeAlias = Callable[[Float[Tensor, "N k"], Sequence[str], int], Float[Tensor, "n k"]]

PRIORS: Registry[Prior] = Registry("prior", "lorasynth.priors")

#: How many adapters one of `convex` is mixed of.
_PARENTS = 3


@PRIORS.register("gaussian")
def gaussian(
    latents: Float[Tensor, "N k"], names: Sequence[str], seed: int
) -> Float[Tensor, "n k"]:
    """Each latent by itself, with the library's mean and standard deviation (4.1)."""
    return latents.mean(dim=0) + latents.std(dim=0) * _normal(latents.shape[1], names, seed)


@PRIORS.register("standard")
def standard(
    latents: Float[Tensor, "N k"], names: Sequence[str], seed: int
) -> Float[Tensor, "n k"]:
    """The standard normal distribution: the prior of a VAE (4.2)."""
    return _normal(latents.shape[1], names, seed).to(latents)


@PRIORS.register("convex")
def convex(latents: Float[Tensor, "N k"], names: Sequence[str], seed: int) -> Float[Tensor, "n k"]:
    """Uniform mixtures of three adapters drawn from the library."""
    drawn = []
    for name in names:
        stream = torch_stream(seed, "convex", name)
        rows = torch.randperm(len(latents), generator=stream)[:_PARENTS]
        shares = torch.empty(len(rows)).exponential_(generator=stream)
        drawn.append((shares / shares.sum()).to(latents) @ latents[rows])
    return torch.stack(drawn)


def _normal(width: int, names: Sequence[str], seed: int) -> Float[Tensor, "n k"]:
    return torch.stack(
        [torch.randn(width, generator=torch_stream(seed, "prior", name)) for name in names]
    )
