"""No compression: vectors with their mean removed, in units of their spread."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lorasynth.codec.contract import CODECS, Codec, VectorSource, gather

#: What one unit is: each parameter's own standard deviation, one for all (the root mean square of
#: them), or 1 without removing the mean.
Scale = Literal["parameter", "global", "none"]

#: The smallest unit of a parameter, as a share of the global one.  Without it a parameter that
#: (nearly) never varies would magnify rounding errors.
FLOOR = 1e-3


@dataclass(frozen=True, kw_only=True)
class ScaledConfig:
    """How vectors are scaled.

    Attributes:
        scale: `parameter` (default; as weights2weights), `global` or `none`.
    """

    scale: Scale = "parameter"


@CODECS.register("scaled")
class Scaled(Codec):
    """z = (x - mean) / unit; k = D.

    Each latent has standard deviation 1 (`parameter`), or their mean square is 1 with the spread
    between parameters kept (`global`), or they are the vectors (`none`, the one codec whose latents
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
    def fit(
        cls,
        vectors: Float[Tensor, "n D"] | VectorSource,
        config: ScaledConfig | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> "Scaled":
        x = gather(vectors, device)
        return cls.of(config or ScaledConfig(), x.mean(0), x.std(0, correction=0))

    @classmethod
    def of(
        cls, config: ScaledConfig, mean: Float[Tensor, " D"], spread: Float[Tensor, " D"]
    ) -> "Scaled":
        """A codec of vectors with this mean and these standard deviations."""
        codec = cls(config, len(mean), len(mean)).to(mean.device)
        if config.scale == "none":
            return codec
        codec.mean = mean
        overall = spread.square().mean().sqrt()
        unit = spread.clamp(min=FLOOR * overall) if config.scale == "parameter" else overall
        # All vectors equal: nothing to scale by.
        codec.unit = torch.where(overall > 0, unit, 1.0).expand_as(spread).clone()
        return codec

    @override
    def _encode(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n k"]:
        return (x - self.mean) / self.unit

    @override
    def _decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n D"]:
        return z * self.unit + self.mean
