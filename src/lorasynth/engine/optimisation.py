"""How a model is trained once: every choice that decides its weights.

Imports no torch, so that commands can show these options at once.
"""

import math
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a model is trained.

    Attributes:
        steps: Optimiser steps; more or fewer can be asked of a run that was begun.
        batch: Samples of a step, of all processes together.
        lr: Peak learning rate of AdamW, reached after the warm-up.
        warmup: Steps in which the learning rate rises.
        decay: Last share of the steps after the warm-up, in which the learning rate falls to zero
            along half a cosine.
        weight_decay: Of AdamW.
        ema: Decay of the exponential moving average of the weights, which is what is kept.
        clip: Norm that gradients are clipped to.
        seed: Of every random stream.
        checkpoint_seconds: How often a checkpoint is written.
    """

    steps: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)]
    warmup: Annotated[int, Field(ge=0)] = 200
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip: Annotated[float, Field(gt=0)] = 1.0
    seed: int = 0
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 120.0

    @property
    def falls_at(self) -> int:
        """The step at which the rate begins to fall."""
        return self.warmup + round((1 - self.decay) * max(self.steps - self.warmup, 0))

    def rate(self, step: int) -> float:
        """The learning rate at a step, as a share of `lr`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = max(step - self.falls_at, 0) / max(self.steps - self.falls_at, 1)
        return 0.5 * (1 + math.cos(share * math.pi))
