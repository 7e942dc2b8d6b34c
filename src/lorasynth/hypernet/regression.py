"""Regression: one latent for each condition, without noise.

Where a condition leaves nothing open, this is all that diffusion can give, at one evaluation.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lorasynth.core.errors import ConfigError
from lorasynth.hypernet.config import LatentRegressionConfig
from lorasynth.hypernet.hypernetwork import HYPERNETWORKS, Hypernetwork
from lorasynth.hypernet.normaliser import Normaliser


@HYPERNETWORKS.register("regression")
class LatentRegression(Hypernetwork):
    """A multilayer perceptron from conditions to latents.

    Noise changes nothing; without a condition it gives the mean latent.
    """

    config_class = LatentRegressionConfig
    #: The latent that stands for no condition; guidance goes from it through the prediction.
    mean: Tensor

    def __init__(self, config: LatentRegressionConfig, latents: int, condition_width: int) -> None:
        super().__init__(config, latents, condition_width)
        self.condition_normaliser = Normaliser(condition_width)
        layers: list[nn.Module] = []
        width = condition_width
        for _ in range(config.depth):
            layers += [nn.Linear(width, config.width), nn.LayerNorm(config.width), nn.SiLU()]
            width = config.width
        self.trunk = nn.Sequential(*layers)
        self.leave = nn.Linear(width, latents)
        self.register_buffer("mean", torch.zeros(latents))

    def forward(self, condition: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        """Predict latents, in the codec's units."""
        latents: Tensor = self.leave(self.trunk(self.condition_normaliser(condition)))
        return latents

    @override
    def _sample(
        self,
        condition: Float[Tensor, "n m"] | None,
        noise: Float[Tensor, "n k"],
        steps: int | None,
        guidance: float | None,
    ) -> Float[Tensor, "n k"]:
        if steps is not None:
            raise ConfigError(
                f"a regression takes no solver steps, but got steps={steps}: leave them out"
            )
        if condition is None:
            return self.mean.expand(len(noise), -1)
        guidance = 1.0 if guidance is None else guidance
        moved: Tensor = self.mean + guidance * (self(condition) - self.mean)
        return moved
