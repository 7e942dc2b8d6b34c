"""How a subject's numbers are found by gradient descent, whatever an adapter is made of them."""

import math
from dataclasses import dataclass
from typing import Literal

from lorasynth.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How one subject's numbers are found by gradient descent.

    Attributes:
        optimiser: "adam", or "sgd" with `momentum`, which steps little where there is no signal.
        learning_rate: of the first step after warm-up.
        momentum: of SGD; unused by Adam.
        schedule: "constant", or "cosine" from `learning_rate` to zero over the steps.
        warmup_steps: steps over which the rate rises linearly from zero.
        steps: optimiser steps.
        images_per_step: samples of each subject in one step, each with its noise and timestep.
            Images come in shuffled rounds, so that each is seen equally often.
        noise: "shared": one sequence of noise and timesteps for all subjects, so that its accidents
            are common to all; "own": one sequence for each subject.
        average: fraction of the steps, at the end, whose numbers are averaged into the result;
            0: the last step's.
        weight_decay: decoupled, as in AdamW, toward the anchor if one is given, else toward zero.
        clip: largest norm of one subject's gradient; None: no limit.
        caption_dropout: share of samples whose caption is replaced by the empty one.
        seed: of every random stream; streams are named by subject, so that neither the fleet nor
            the order of subjects matters.
    """

    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 5e-3
    momentum: float = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    steps: int = 300
    images_per_step: int = 4
    noise: Literal["shared", "own"] = "shared"
    average: float = 0.3
    weight_decay: float = 0.0
    clip: float | None = 1.0
    caption_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            ConfigError: a value is out of range, or two options contradict each other.
        """
        for name, (holds, rule) in self._rules().items():
            if not holds:
                kind, value = type(self).__name__, getattr(self, name)
                raise ConfigError(f"{kind}.{name} must be {rule}, but is {value!r}")

    def _rules(self) -> dict[str, tuple[bool, str]]:
        """Option -> whether it is in range, and the range in words."""
        return {
            "learning_rate": (self.learning_rate > 0, "positive"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "steps": (self.steps >= 1, "at least 1"),
            "warmup_steps": (0 <= self.warmup_steps < self.steps, "from 0 to less than steps"),
            "images_per_step": (self.images_per_step >= 1, "at least 1"),
            "average": (0 <= self.average <= 1, "in [0, 1]"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "clip": (self.clip is None or self.clip > 0, "positive, or null for no limit"),
            "caption_dropout": (0 <= self.caption_dropout <= 1, "in [0, 1]"),
        }

    @property
    def averaged_steps(self) -> int:
        """How many of the last steps are averaged; at least the last one."""
        return max(1, round(self.average * self.steps))

    def rate(self, step: int) -> float:
        """Learning rate of step 0 ≤ `step` < `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
