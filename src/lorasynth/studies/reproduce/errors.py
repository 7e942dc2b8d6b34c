"""Errors on held-out adapters, as shares of what there is to know."""

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.studies.methods import Ridge


def missed(
    found: Float[Tensor, "h D"], truth: Float[Tensor, "h D"], known: Float[Tensor, "N D"]
) -> Float[Tensor, " h"]:
    """Squared error of each row, as a share of what the known vectors' mean misses on average.

    So a mean of 1 over the rows is to know nothing.
    """
    whole = (truth - known.mean(dim=0)).square().sum(dim=1).mean()
    shares: Tensor = (found - truth).square().sum(dim=1) / whole
    return shares


def ridge_missed(
    vectors: Float[Tensor, "n D"], conditions: Float[Tensor, "n P m"], count: int
) -> Float[Tensor, " h"]:
    """What ridge regression from conditions misses of the vectors after the first `count`."""
    known = LatentLibrary(
        ids=tuple(map(str, range(count))), latents=vectors[:count], conditions=conditions[:count]
    )
    held = conditions[count:]
    images = held.shape[1]
    guess = Ridge(known)(held.flatten(0, 1))
    truth = vectors[count:].repeat_interleave(images, dim=0)
    by_image = missed(guess, truth, vectors[:count]).unflatten(0, (-1, images))
    return torch.mean(by_image, dim=1)


def roots(x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """Singular values of centred rows, falling; through the n x n Gram matrix in float64."""
    x = x.double()
    x = x - x.mean(dim=0)
    values: Tensor = torch.linalg.eigvalsh(x @ x.T).flip(0).clamp(min=0).sqrt()
    return values
