"""How one adapter is trained: every choice that decides its numbers, in one dataclass.

Two adapters trained by one recipe differ only by their subjects.  What decides speed alone (fleet
size, device, precision of the base model) is not here.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

from lorasynth.core.config import to_dict
from lorasynth.engine.descent import Descent
from lorasynth.engine.prior import Prior


@dataclass(frozen=True, kw_only=True)
class Recipe(Descent):
    """The training of one adapter: a `Descent`, and on which numbers.

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
        prior: images of the subject's class that each adapter also learns; None: none.
    """

    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    rank: int = 4
    alpha: float | None = None
    trained: Literal["B", "both"] = "B"
    start: Literal["shared", "own"] = "shared"
    start_scale: float = 1.0
    prior: Prior | None = None

    @override
    def _rules(self) -> dict[str, tuple[bool, str]]:
        return super()._rules() | {
            "targets": (bool(self.targets), "at least one ending of a module name"),
            "rank": (self.rank >= 1, "at least 1"),
            "alpha": (self.alpha is None or self.alpha > 0, "positive, or null for the rank"),
            "start": (
                self.start == "shared" or self.trained == "both",
                '"shared" when only B is trained (an own, frozen A would be pure noise)',
            ),
            "start_scale": (self.start_scale > 0, "positive"),
        }

    @property
    def scale(self) -> float:
        """The factor alpha / rank of B A while training."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def stated(self) -> dict[str, Any]:
        """All options in JSON values; the prior, which came later, only where there is one.

        So what was made without one before keeps its recipe.
        """
        return {k: v for k, v in to_dict(self).items() if k != "prior" or v is not None}

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
        prior=Prior(prompt="person"),
    ),
}
