"""How adapters are trained: the optimiser of one subject, and the recipe of one adapter.

Two adapters trained by one recipe differ only by their subjects.  What decides speed alone (fleet
size, device, precision of the base model) is not here.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass
from tyro.conf import Fixed, Suppress

from lorasynth.core.config import to_dict

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser, learning rate, averaging and sharing of noise for one subject.

    Attributes:
        optimiser: adam, or sgd with `momentum`, which moves little where there is no signal.
        learning_rate: Of the first step after warm-up.
        momentum: Of SGD; unused by Adam.
        schedule: constant, or cosine from `learning_rate` to zero over the steps.
        warmup_steps: Steps over which the rate rises linearly from zero.
        steps: Optimiser steps.
        images_per_step: Samples of each subject in one step, each with its noise and timestep.
            Images come in shuffled rounds, so that each is seen equally often.
        noise: shared: one sequence of noise and timesteps for all subjects, so that its accidents
            are common to all; own: one sequence for each subject.
        average: Fraction of the steps, at the end, whose parameters are averaged into the result;
            0: the last step's.
        weight_decay: Decoupled, as in AdamW, toward the initial adapter if one is given, else
            toward zero.
        clip: Largest norm of one subject's gradient; None: no limit.
        caption_dropout: Share of samples whose caption is replaced by the empty one.
        seed: Of every random stream; streams are named by subject, so that neither the fleet nor
            the order of subjects matters.
    """

    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: Positive = 5e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    steps: Count = 300
    images_per_step: Count = 4
    noise: Literal["shared", "own"] = "shared"
    average: Share = 0.3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive | None = 1.0
    caption_dropout: Share = 0.0
    seed: Annotated[int, Fixed, Suppress] = 0  # commands have one --seed for all that is random

    @model_validator(mode="after")
    def _ends_its_warmup(self) -> "OptimizerConfig":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps must be less than steps, but is {self.warmup_steps} of {self.steps}"
            )
        return self

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


@dataclass(frozen=True, kw_only=True)
class PriorPreservation:
    """Class images that each adapter also learns, so that it leaves the subject's class as it is.

    The base model makes them (DreamBooth, Ruiz et al. 2023, https://arxiv.org/abs/2208.12242,
    section 3.3).  They are the same for all adapters of a library.

    Attributes:
        prompt: Makes an image of any member of the class, such as "a person"; default: none.
        images: How many are made.
        weight: Of their loss, beside that of the subject's images.
        steps: Solver steps for each.
        guidance: Of the solver.
    """

    prompt: str | None = None
    images: Count = 200
    weight: Positive = 1.0
    steps: Count = 50
    guidance: float = 7.5


def _none_as_default(given: Any) -> Any:
    return {} if given is None else given  # as recipes of before say it


@dataclass(frozen=True, kw_only=True)
class Recipe(OptimizerConfig):
    """The training of one adapter.

    The default trains B alone from an A that all adapters share.  That makes the problem nearly
    convex and leaves no gauge, so that an adapter is more about its subject and less about its
    training run than with A and B both trained.

    Attributes:
        targets: Endings of the names of the linear modules to adapt.
        rank: Rank of ΔW in each module.
        alpha: Training uses ΔW = alpha / rank · B A, and the factor is folded into B at the end;
            None: alpha = rank, so the factor is 1.
        trained: B: A is frozen at its start; both: A and B are trained.
        start: Where A starts.  shared: one A for all subjects, orthonormal rows of norm
            `start_scale`; own: each subject draws its own, uniform as in PEFT.  B starts at zero.
        start_scale: Norm of the rows of a shared A; scales the learning rate of B's ΔW.
        prior: Prior preservation.
    """

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
    )
    rank: Count = 4
    alpha: Positive | None = None
    trained: Literal["B", "both"] = "B"
    start: Literal["shared", "own"] = "shared"
    start_scale: Positive = 1.0
    prior: Annotated[PriorPreservation, BeforeValidator(_none_as_default)] = PriorPreservation()

    @model_validator(mode="after")
    def _trains_what_it_draws(self) -> "Recipe":
        if self.start == "own" and self.trained == "B":
            raise ValueError(
                "start must be shared when only B is trained (an own, frozen A would be noise)"
            )
        return self

    @property
    def scale(self) -> float:
        """The factor alpha / rank of B A while training."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def stated(self) -> dict[str, Any]:
        """All options in JSON values; those of prior preservation only where there is any.

        So what was made before there was any keeps its recipe.
        """
        return {k: v for k, v in to_dict(self).items() if k != "prior" or self.prior.prompt}

    @property
    def fingerprint(self) -> str:
        """Hash of all options, recorded with every adapter."""
        text = json.dumps(self.stated, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


#: Named recipes: `ours` is the default; `anchored` starts from a synthesizer's prediction, so it
#: needs few steps; `refine` goes on from a synthesised adapter with one image or a few; `usual`
#: trains A and B by Adam, as most do, so that adapters of one subject hardly agree;
#: `weights2weights` is the one of the paper's data set (https://arxiv.org/abs/2406.09413).
PRESETS: dict[str, Recipe] = {
    "ours": Recipe(),
    "anchored": Recipe(steps=100, learning_rate=2e-3),
    "usual": Recipe(trained="both", start="own", noise="own", average=0.0),
    "refine": Recipe(
        trained="both", steps=50, learning_rate=1e-3, noise="own", caption_dropout=0.2
    ),
    "weights2weights": Recipe(
        targets=("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_v"),
        rank=1,
        alpha=27.0,
        trained="both",
        start="own",
        learning_rate=1e-4,
        steps=800,
        images_per_step=1,
        noise="own",
        average=0.0,
        weight_decay=1e-2,
        prior=PriorPreservation(prompt="person"),
    ),
}
