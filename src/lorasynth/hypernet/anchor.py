"""A regression whose latents are another codec's, for diffusion to start around."""

import copy

import torch
from torch import nn

from lorasynth.codec import Codec
from lorasynth.core.errors import ConfigError
from lorasynth.hypernet.regression import LatentRegression


@torch.no_grad()
def in_latents_of(regression: LatentRegression, own: Codec, other: Codec) -> LatentRegression:
    """The same predictions, through `own` and back into the latents of `other`.

    Args:
        regression: predicts latents of `own`.
        own: its codec.
        other: another codec of the same vectors.

    Raises:
        ConfigError: `other` after `own` is not affine, as it is for any two linear codecs.
        LayoutError: the codecs are of vectors of different widths.
    """
    basis = torch.eye(own.latents)
    probe = torch.linspace(-1, 1, own.latents)[None]
    offset, *_ = other.encode(own.decode(torch.zeros_like(probe)))
    matrix = other.encode(own.decode(basis)) - offset
    found, expected = other.encode(own.decode(probe)), probe.to(matrix) @ matrix + offset
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(matrix.norm())):
        raise ConfigError(
            f"diffusion around a regression needs a linear codec, but {type(other).__name__} is "
            "none: use pca or scaled"
        )
    moved = copy.deepcopy(regression)
    moved.latents = other.latents
    moved.leave = nn.Linear(regression.leave.in_features, other.latents)
    moved.leave.weight.copy_(matrix.T @ regression.leave.weight)
    moved.leave.bias.copy_(matrix.T @ regression.leave.bias + offset)
    moved.mean = regression.mean @ matrix + offset
    return moved.eval().requires_grad_(requires_grad=False)
