"""How a predictor is built and trained."""

from dataclasses import field
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import arg

from lorasynth.core.config import to_dict
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
        held_out: Share of the subjects that nothing is learned from, at least 2 and at most 64 of
            8 or more; those of the split "validation" where the images state splits. 0 for none.
        record_every: Steps between rows of metrics.jsonl in the run's folder, which have the loss
            of held-out subjects.
        patience: Rows without a lower one after which training ends; the weights with the lowest
            are kept.
        samples_every: Steps between samples of a few held-out subjects: a PNG in the run's folder
            samples, and their identity similarity in metrics.jsonl. 0 for none.
        strict: Stop at the first subject that cannot be used, rather than leave it out.
    """

    model: LatentRegressionConfig = field(default_factory=LatentRegressionConfig)
    latents: Count = 128
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=10_000, batch=64, lr=1e-3, weight_decay=0.0)
    )
    images: Annotated[Count, arg(name="images-per-step")] = 1
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    record_every: Count = 200
    patience: Count = 10
    samples_every: Annotated[int, Field(ge=0)] = 1000
    strict: bool = False

    @property
    def stated(self) -> dict[str, Any]:
        """What the weights of given subjects depend on, as JSON values."""
        depends = ("model", "latents", "optimisation", "images")
        return {name: to_dict(self)[name] for name in depends}
