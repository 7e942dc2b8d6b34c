"""Ways from one adapter to another through a codec's latents."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def lerp(
    start: Float[Tensor, " k"], end: Float[Tensor, " k"], shares: Float[Tensor, " n"]
) -> Float[Tensor, "n k"]:
    """The straight line."""
    return torch.lerp(start, end, shares[:, None])


def slerp(
    start: Float[Tensor, " k"], end: Float[Tensor, " k"], shares: Float[Tensor, " n"]
) -> Float[Tensor, "n k"]:
    """The arc of a great circle, with a length between those of its ends (Shoemake 1985).

    Far points of many dimensions lie near a sphere, and a straight line between them leaves it.
    Where the ends point the same or opposite ways, it is the straight line.
    """
    lengths = torch.lerp(start.norm(), end.norm(), shares)[:, None]
    first, last = start / start.norm(), end / end.norm()
    cosine = first @ last
    if not cosine.abs() < 1 - 1e-6:
        return lerp(start, end, shares)
    angle = torch.arccos(cosine)
    weights = torch.sin(torch.stack([1 - shares, shares], dim=1) * angle) / torch.sin(angle)
    return lengths * (weights @ torch.stack([first, last]))


Path = Callable[[Tensor, Tensor, Tensor], Tensor]
PATHS: dict[str, Path] = {"lerp": lerp, "slerp": slerp}
