"""No compression: vectors with their mean removed, in units of their standard deviation."""

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lorasynth.codec.config import Budget, ScaledConfig
from lorasynth.codec.contract import CODECS, Codec
from lorasynth.library.blocks import BlockSource
from lorasynth.library.statistics import streaming_statistics

#: The smallest unit of a parameter, as a share of the global one.  Without it a parameter that
#: (nearly) never varies would magnify rounding errors.
FLOOR = 1e-3


@CODECS.register("scaled")
class Scaled(Codec):
    """z = (x - mean) / unit; k = D.

    Each latent has standard deviation 1 (`parameter`), or their mean square is 1 and parameters
    keep their proportions (`global`), or they are the vectors (`none`, the one codec whose latents
    are not of unit scale).
    """

    config_class = ScaledConfig
    mean: Tensor
    unit: Tensor

    def __init__(self, config: ScaledConfig, width: int, latents: int) -> None:
        super().__init__(config, width, latents)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("unit", torch.ones(width))

    @override
    @classmethod
    def _fit(cls, source: BlockSource, config: ScaledConfig, budget: Budget) -> "Scaled":
        found = streaming_statistics(source).moments
        return cls.of(config, found.mean.float(), found.variance.sqrt().float())

    @classmethod
    def of(
        cls, config: ScaledConfig, mean: Float[Tensor, " D"], deviation: Float[Tensor, " D"]
    ) -> "Scaled":
        """A codec of vectors with this mean and these standard deviations."""
        codec = cls(config, len(mean), len(mean)).to(mean.device)
        if config.scale == "none":
            return codec
        codec.mean = mean
        overall = deviation.square().mean().sqrt()
        unit = deviation.clamp(min=FLOOR * overall) if config.scale == "parameter" else overall
        # All vectors equal: nothing to scale by.
        codec.unit = torch.where(overall > 0, unit, 1.0).expand_as(deviation).clone()
        return codec

    @override
    def _encode(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n k"]:
        return (x - self.mean) / self.unit

    @override
    def _decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n D"]:
        return z * self.unit + self.mean
