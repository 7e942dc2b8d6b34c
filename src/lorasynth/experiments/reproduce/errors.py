"""Errors on held-out adapters, as shares of what there is to know."""

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.experiments.latent_library import LatentLibrary
from lorasynth.experiments.methods import Ridge


def missed(
    found: Float[Tensor, "h D"], truth: Float[Tensor, "h D"], known: Float[Tensor, "N D"]
) -> float:
    """Squared error as a share of that of the known vectors' mean: 1 is to know nothing."""
    return float((found - truth).square().sum() / (truth - known.mean(dim=0)).square().sum())


def ridge_missed(
    vectors: Float[Tensor, "n D"], conditions: Float[Tensor, "n P m"], count: int
) -> float:
    """What ridge regression from conditions misses of the vectors after the first `count`."""
    known = LatentLibrary(
        ids=tuple(map(str, range(count))), latents=vectors[:count], conditions=conditions[:count]
    )
    held = conditions[count:]
    guess = Ridge(known)(held.flatten(0, 1)).unflatten(0, held.shape[:2])
    truth = vectors[count:, None].expand_as(guess)
    return missed(guess.flatten(0, 1), truth.flatten(0, 1), vectors[:count])


def roots(x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """Singular values of centred rows, falling; through the n x n Gram matrix in float64."""
    x = x.double()
    x = x - x.mean(dim=0)
    values: Tensor = torch.linalg.eigvalsh(x @ x.T).flip(0).clamp(min=0).sqrt()
    return values
