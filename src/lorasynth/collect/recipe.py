"""How one adapter is trained: every choice that decides its numbers, in one dataclass.

Two adapters trained by one recipe differ only by their subjects.  What decides speed alone (fleet
size, device, precision of the base model) is not here.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal

from lorasynth.config import to_dict
from lorasynth.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training of one adapter.

    The default trains B alone from an A that all adapters share.  That makes the problem nearly
    convex and leaves no gauge, so that an adapter is more about its subject and less about its
    training run than with A and B both trained (`lorasynth.collect.repeatability` measures it).

    Attributes:
        targets: endings of the names of the linear modules to adapt.
        rank: rank of ΔW in each module.
        alpha: training uses ΔW = alpha / rank · B A, and the factor is folded into B at the end;
            None: alpha = rank, so the factor is 1.
        trained: "B": A is frozen at its start; "both": A and B are trained.
        start: where A starts.  "shared": one A for all subjects, orthonormal rows of norm
            `start_scale`; "own": each subject draws its own, uniform as in PEFT.  B starts at zero.
        start_scale: norm of the rows of a shared A; scales the learning rate of B's ΔW.
        optimiser: "adam", or "sgd" with `momentum`, which steps little where there is no signal.
        learning_rate: of the first step after warm-up.
        momentum: of SGD; unused by Adam.
        schedule: "constant", or "cosine" from `learning_rate` to zero over the steps.
        warmup_steps: steps over which the rate rises linearly from zero.
        steps: optimiser steps.
        pictures_per_step: samples of each subject in one step, each with its noise and timestep.
            Pictures come in shuffled rounds, so that each is seen equally often.
        noise: "shared": one sequence of noise and timesteps for all subjects, so that its accidents
            are common to all adapters; "own": one sequence for each subject.
        average: fraction of the steps, at the end, whose factors are averaged into the result;
            0: the last step's factors.
        weight_decay: decoupled, as in AdamW, toward the anchor if one is given, else toward zero.
        clip: largest norm of one adapter's gradient; None: no limit.
        caption_dropout: share of samples whose caption is replaced by the empty one.
        seed: of every random stream; streams are named by subject, so that neither the fleet nor
            the order of subjects matters.
    """

    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    rank: int = 4
    alpha: float | None = None
    trained: Literal["B", "both"] = "B"
    start: Literal["shared", "own"] = "shared"
    start_scale: float = 1.0
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 5e-3
    momentum: float = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    steps: int = 300
    pictures_per_step: int = 4
    noise: Literal["shared", "own"] = "shared"
    average: float = 0.3
    weight_decay: float = 0.0
    clip: float | None = 1.0
    caption_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            ConfigError: a value is out of range, or two options contradict each other.
        """
        rules = {
            "targets": (bool(self.targets), "at least one ending of a module name"),
            "rank": (self.rank >= 1, "at least 1"),
            "alpha": (self.alpha is None or self.alpha > 0, "positive, or null for the rank"),
            "start": (
                self.start == "shared" or self.trained == "both",
                '"shared" when only B is trained (an own, frozen A would be pure noise)',
            ),
            "start_scale": (self.start_scale > 0, "positive"),
            "learning_rate": (self.learning_rate > 0, "positive"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "steps": (self.steps >= 1, "at least 1"),
            "warmup_steps": (0 <= self.warmup_steps < self.steps, "from 0 to less than steps"),
            "pictures_per_step": (self.pictures_per_step >= 1, "at least 1"),
            "average": (0 <= self.average <= 1, "in [0, 1]"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "clip": (self.clip is None or self.clip > 0, "positive, or null for no limit"),
            "caption_dropout": (0 <= self.caption_dropout <= 1, "in [0, 1]"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"Recipe.{name} must be {rule}, but is {getattr(self, name)!r}")

    @property
    def scale(self) -> float:
        """The factor alpha / rank of B A while training."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def averaged_steps(self) -> int:
        """How many of the last steps are averaged; at least the last one."""
        return max(1, round(self.average * self.steps))

    @property
    def fingerprint(self) -> str:
        """Hash of all options, recorded with every adapter."""
        text = json.dumps(to_dict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def rate(self, step: int) -> float:
        """Learning rate of step 0 ≤ `step` < `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


#: Named recipes: `ours` is the default; `weights2weights` is the one of the paper's data set
#: (https://arxiv.org/abs/2406.09413), without its prior preservation.
PRESETS: dict[str, Recipe] = {
    "ours": Recipe(),
    "weights2weights": Recipe(
        targets=("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_v"),
        rank=1,
        alpha=27.0,
        trained="both",
        start="own",
        learning_rate=1e-4,
        steps=800,
        pictures_per_step=1,
        noise="own",
        average=0.0,
        weight_decay=1e-2,
    ),
}
