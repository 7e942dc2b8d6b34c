"""How encoders are trained.  Imports no torch, so that commands show it at once."""

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from lorasynth.engine.optimisation import Optimisation


@dataclass(frozen=True, kw_only=True)
class ArcFaceConfig:
    """How an encoder is trained.

    Attributes:
        scale: s of the loss, the inverse temperature.
        margin: m of the loss, in radians, added to the angle to the own subject.
        negatives: Patterns and shuffled images made to train the detector.
        negative_share: Of images that show no subject in a batch.
        optimisation: How.
    """

    scale: Annotated[float, Field(gt=0)] = 24.0
    margin: Annotated[float, Field(ge=0)] = 0.35
    negatives: Annotated[int, Field(ge=1)] = 2000
    negative_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(
            steps=6000, batch=128, lr=2e-3, weight_decay=0.05, ema=0.995
        )
    )
