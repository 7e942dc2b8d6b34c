"""How well an encoder tells subjects apart: rank-1 identification and similarities."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What an encoder knows of n subjects, from two different images of each.

    Attributes:
        rank1: share of subjects whose second image is nearest to their own first image.
        same: mean cosine between two images of one subject.
        different: mean cosine between images of two subjects.
        n: number of subjects.
    """

    rank1: float
    same: float
    different: float
    n: int


def identification(first: Float[Tensor, "n m"], second: Float[Tensor, "n m"]) -> Identification:
    """Match each subject's second image against all first images."""
    cosines = second @ first.T
    n = len(cosines)
    hits = cosines.argmax(dim=1) == torch.arange(n)
    same = cosines.diagonal().mean()
    different = (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))
    return Identification(
        rank1=hits.float().mean().item(), same=same.item(), different=different.item(), n=n
    )
