"""How coordinates are optimised."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import arg

from lorasynth.engine.recipe import PRESETS, Count, OptimizerConfig

Weight = Annotated[float, Field(ge=0)]
#: Its options stand beside those of the config that holds it.
Optimizer = Annotated[OptimizerConfig, arg(name="")]

#: How `lorasynth refine` and the service train an adapter on.  Fewer captions are dropped than in
#: the preset: dropped ones teach the photo to every image.
REFINE = replace(PRESETS["refine"], caption_dropout=0.05)


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """How an adapter in training is compared with its subject's photos.

    Attributes:
        every: Steps between two checks.
        images: Images made for each.
        patience: Checks without a better adapter after which training ends.
    """

    every: Count = 10
    images: Count = 4
    patience: Count = 3


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What mixtures may be, and how they are found.

    Attributes:
        simplex: Coefficients are a softmax, so none is negative and they sum to one; otherwise
            they are free.
        penalty: Weight of the mean square of the coefficients' distance from the mean adapter's,
            in units of the mean adapter's own coefficient, 1/N.
        optimizer: Finds the coefficients.
    """

    simplex: bool = False
    penalty: Weight = 0.0
    optimizer: Optimizer = OptimizerConfig(learning_rate=3.0, steps=200, clip=None)


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Which latents are likely, and how they are found.

    Attributes:
        prior: Weight of the mean square of the latent in units of its standard deviation, the
            negative logarithm of a Gaussian prior up to a factor; 0 leaves the data alone.
        equal_steps: Steps are in units of each latent's standard deviation, so that rare directions
            move as readily as frequent ones; False: all move alike, as in weights2weights.
        optimizer: Finds the latents.
    """

    prior: Weight = 1e-3
    equal_steps: bool = True
    optimizer: Optimizer = OptimizerConfig(learning_rate=0.1, steps=200, clip=None)
