"""Diversity: do samples differ where they should?"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def mean_pairwise_distance(features: Float[Tensor, "n k f"]) -> Float[Tensor, " n"]:
    """Mean of 1 - cosine over all pairs of each subject's k samples.

    Features of images give the diversity of images; centred adapter vectors give that of
    adapters synthesised from one condition.
    """
    unit = functional.normalize(features, dim=-1)
    k = features.shape[1]
    cosines = unit @ unit.mT
    return 1 - (cosines.sum(dim=(1, 2)) - k) / (k * (k - 1))
