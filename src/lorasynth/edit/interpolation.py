"""Ways from one adapter to another through a codec's latents."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.codec import Codec


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


@torch.no_grad()
def interpolate(
    codec: Codec,
    start: Float[Tensor, " D"],
    end: Float[Tensor, " D"],
    shares: Float[Tensor, " n"],
    path: Path = lerp,
) -> Float[Tensor, "n D"]:
    """Vectors on the way from `start` (share 0) to `end` (share 1), both of which are met exactly.

    What the codec loses of the ends is interpolated linearly.

    Args:
        codec: in whose latents the way goes.
        start: a canonical vector.
        end: another.
        shares: of the way.
        path: from two latents and shares to latents.
    """
    ends = torch.stack([start, end])
    latents = codec.encode(ends)
    lost = ends - codec.decode(latents)
    way = codec.decode(path(latents[0], latents[1], shares.to(latents)))
    return way + lerp(lost[0], lost[1], shares.to(lost))
