"""How much a benchmark measures; no torch, since commands have these options."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from lorasynth.base import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Test subjects, and the images that are made of them.

    Attributes:
        subjects: How many test subjects; default: 100 that are drawn, or all.
        split: Of drawn subjects: test, or validation for choices.
        training_images: Images of drawn subjects that trained contenders learn from.
        images: Images made of each subject with each contender.
        seed: Seed of drawn subjects and of the noise, which is the same for all contenders.
        sampling_steps: Solver steps of the base model.
        image_guidance: Classifier-free guidance of the base model; 1 turns it off; default: 3, and
            none of a distilled model.
        sampling_batch: Most latents denoised at once.
        fleet: Subjects whose images are made together.
    """

    subjects: Annotated[int, Field(ge=2)] | None = None
    split: Literal["test", "validation"] = "test"
    training_images: Annotated[int, Field(ge=1)] = 10
    images: Annotated[int, Field(ge=2)] = 8
    seed: int = 0
    sampling_steps: Annotated[int, Field(ge=1)] = 10
    image_guidance: float | None = None
    sampling_batch: Annotated[int, Field(ge=1)] = 64
    fleet: Annotated[int, Field(ge=1)] = 25

    @property
    def drawn(self) -> int:
        """How many subjects are drawn, where they are."""
        return self.subjects or 100

    @property
    def sampling(self) -> "SamplingConfig":
        """How the base model makes images."""
        from lorasynth.base import SamplingConfig

        return SamplingConfig(
            steps=self.sampling_steps, guidance=self.image_guidance, batch=self.sampling_batch
        )
