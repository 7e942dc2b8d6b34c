"""A quality gate: are a few images made with an adapter like its subject?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from lorasynth.adapter import Factors
from lorasynth.base import MEASURED, BaseModel, SamplingConfig
from lorasynth.collect.contract import Verdict
from lorasynth.condition import ConditionEncoder, seen_in
from lorasynth.condition.similarity import likeness
from lorasynth.core.randomness import stream_seed
from lorasynth.images import Subject

#: What the library's table says of what a gate measured.
GATE_COLUMNS = ("likeness",)


@dataclass(frozen=True, kw_only=True)
class LikenessGate:
    """Lets adapters pass whose samples are like the images that they were trained on.

    The samples have the captions of those images.  Unlike the likeness that is reported, this one
    compares with training images: it is to find broken adapters, not to rank good ones.

    Attributes:
        base: makes the samples.
        encoder: compares them.
        least: the smallest mean cosine that passes.
        samples: made with each adapter.
        sampling: how.
        seed: of the noise; a subject's samples do not depend on its fleet.
    """

    base: BaseModel
    encoder: ConditionEncoder
    least: float
    samples: int = 4
    sampling: SamplingConfig = MEASURED
    seed: int = 0

    def __call__(self, factors: Factors, subjects: Sequence[Subject]) -> Verdict:
        """Judge the adapters of `subjects`, stacked in the same order; the metric is `likeness`."""
        prompts: list[str] = []
        seeds: list[int] = []
        for subject in subjects:
            prompts += islice(cycle(subject.captions), self.samples)
            seeds += [stream_seed(self.seed, "gate", subject.id, i) for i in range(self.samples)]
        images = self.base.sample(prompts, seeds, factors, self.sampling)
        made = self.encoder.see(images).embeddings.unflatten(0, (len(subjects), self.samples))
        found = torch.stack(
            [
                likeness(samples[None], seen_in(self.encoder, subject).embeddings[None]).squeeze()
                for samples, subject in zip(made, subjects, strict=True)
            ]
        )
        return Verdict(passed=found >= self.least, metrics={"likeness": found.tolist()})
