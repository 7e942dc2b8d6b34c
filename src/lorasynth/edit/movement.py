"""Moves adapters by a step in latents without losing what the codec cannot hold."""

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.codec import Codec


@torch.no_grad()
def moved(
    codec: Codec, vectors: Float[Tensor, "n D"], step: Float[Tensor, "*n k"]
) -> Float[Tensor, "n D"]:
    """Vectors moved by what the step in latents changes once decoded; a step of zero keeps them.

    Args:
        codec: in whose latents the step is.
        vectors: canonical vectors.
        step: one for all, for example a `direction` times a strength, or one for each.
    """
    latents = codec.encode(vectors)
    return vectors + codec.decode(latents + step) - codec.decode(latents)
