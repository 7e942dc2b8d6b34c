"""weights2weights' inversion as its authors run it (https://arxiv.org/abs/2406.09413, 4.3).

Coefficients of the principal components of standardised weights are found by Adam at 0.1, in 400
steps of one sample each, without a prior.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.codec import PCA, Budget, PCAConfig
from lorasynth.engine.recipe import OptimizerConfig
from lorasynth.optimise.config import InversionConfig

#: The rate is one of coefficients; `in_latents` makes it one of a codec's latents.
SETTINGS = InversionConfig(
    prior=0.0,
    equal_steps=False,
    optimizer=OptimizerConfig(
        learning_rate=0.1, steps=400, images_per_step=1, noise="own", average=0.0, clip=None
    ),
)
_COMPONENTS = 1000


def components_of(known: Float[Tensor, "N D"], device: torch.device | str = "cpu") -> PCA:
    """The components: 1,000, or one fewer than there are vectors.

    Raises:
        LibraryError: there are fewer than two vectors.
    """
    latents = min(_COMPONENTS, len(known) - 1)
    config = PCAConfig(latents=latents, scale="parameter")
    return PCA.fit(known, config, Budget(device=str(device)))


def in_latents(config: InversionConfig, codec: PCA) -> InversionConfig:
    """Settings whose rate is one of coefficients, in the units of latents."""
    rate = config.optimizer.learning_rate / float(codec.unit[0])
    return replace(config, optimizer=replace(config.optimizer, learning_rate=rate))
