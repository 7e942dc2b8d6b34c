"""How images are made: options of sampling, and images of several adapters, each in its region."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

#: Noisy latents and their time -> the prediction that a solver takes.
Guided: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are made.

    Attributes:
        steps: solver steps.
        guidance: weight of classifier-free guidance, 1 turns it off (0 in Z-Image, as diffusers
            counts there); or what a model that was distilled with guidance is told; None: 3, and
            off in a model that was distilled to few steps.
        batch: most latents denoised at once (twice as many samples with guidance); large images
            are made in smaller batches.
        height: of the images in pixels; None: the base model's `image_size`.
        width: the same.
        negative_prompt: what the images shall not show, for classifier-free guidance.
        guidance_side: where adapters act in classifier-free guidance: "both", or at the "prompt"
            alone, and the model says by itself what it makes of nothing.
        regions: where in one image each of several adapters acts, as shares of its sides: left,
            top, right, bottom; none: each adapter makes images of its own.
    """

    steps: int = 20
    guidance: float | None = None
    batch: int = 64
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    guidance_side: Literal["both", "prompt"] = "both"
    regions: tuple[tuple[float, float, float, float], ...] = ()


#: For images that are only measured: their figures are those of images after twenty steps.
MEASURED = SamplingConfig(steps=10)


def region_weights(
    regions: Sequence[tuple[float, float, float, float]], sides: Sequence[int]
) -> Float[Tensor, "n h w"]:
    """How much each region's adapter decides at each place of a latent; they add up to 1.

    What lies in several regions, or in none, is shared evenly.
    """
    height, width = sides
    y = (torch.arange(height) + 0.5)[:, None] / height
    x = (torch.arange(width) + 0.5)[None] / width
    inside = torch.stack(
        [((x >= a) & (x < c) & (y >= b) & (y < d)).float() for a, b, c, d in regions]
    )
    inside = torch.where(inside.sum(dim=0) > 0, inside, 1.0)
    return inside / inside.sum(dim=0)


def mixed(predicted: Float[Tensor, "nm ..."], weights: Float[Tensor, "n h w"]) -> Tensor:
    """What n adapters predict of m images, mixed place by place; the same for each of the n.

    MultiDiffusion's rule (Bar-Tal et al. 2023), with a prediction for each region.
    """
    each = predicted.unflatten(0, (len(weights), -1))
    spread = weights.view(len(weights), *[1] * (each.dim() - 3), *weights.shape[1:])
    whole: Tensor = (each * spread.to(each)).sum(dim=0)
    return whole.expand(len(weights), *whole.shape).flatten(0, 1)
