"""Errors on held-out adapters, as fractions of the variance that there is to explain."""

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.evaluation.baselines import Ridge


def fvu(
    found: Float[Tensor, "h D"], truth: Float[Tensor, "h D"], known: Float[Tensor, "N D"]
) -> Float[Tensor, " h"]:
    """Fraction of variance unexplained, of each row; a mean of 1 is to predict the known mean."""
    whole = (truth - known.mean(dim=0)).square().sum(dim=1).mean()
    fractions: Tensor = (found - truth).square().sum(dim=1) / whole
    return fractions


def ridge_fvu(
    vectors: Float[Tensor, "n D"], conditions: Float[Tensor, "n P m"], count: int
) -> Float[Tensor, " h"]:
    """FVU of ridge regression from conditions, on the vectors after the first `count`."""
    known = LatentLibrary(
        ids=tuple(map(str, range(count))), latents=vectors[:count], conditions=conditions[:count]
    )
    held = conditions[count:]
    images = held.shape[1]
    guess = Ridge(known)(held.flatten(0, 1))
    truth = vectors[count:].repeat_interleave(images, dim=0)
    return torch.mean(fvu(guess, truth, vectors[:count]).unflatten(0, (-1, images)), dim=1)


def roots(x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """Singular values of centred rows, falling; through the n x n Gram matrix in float64."""
    x = x.double()
    x = x - x.mean(dim=0)
    values: Tensor = torch.linalg.eigvalsh(x @ x.T).flip(0).clamp(min=0).sqrt()
    return values
