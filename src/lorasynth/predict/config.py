"""How a predictor is built and trained."""

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import arg

from lorasynth.engine import Optimisation
from lorasynth.hypernet import LatentRegressionConfig

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class PredictorTraining:
    """How a predictor is built and trained.

    Attributes:
        model: The regression.
        latents: Directions that adapters are mixed of.
        optimisation: Steps, learning rate, averaging and seed; its batch is the number of subjects.
        images: Denoised of each subject in one step; at equal cost, many subjects with one image
            each teach more than few with several.
    """

    model: LatentRegressionConfig = field(default_factory=LatentRegressionConfig)
    latents: Count = 128
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=10_000, batch=64, lr=1e-3, weight_decay=0.0)
    )
    images: Annotated[Count, arg(name="images-per-step")] = 1
