"""A quality gate: are a few pictures made with an adapter like its subject?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.base import MEASURED, BaseModel, SamplingConfig
from lorasynth.collect.contract import Verdict
from lorasynth.condition import ConditionEncoder
from lorasynth.errors import PictureError
from lorasynth.measure.likeness import likeness
from lorasynth.pictures import Subject
from lorasynth.randomness import stream_seed

#: What the library's table says of what a gate measured.
GATE_COLUMNS = ("likeness",)

#: Of pictures that the encoder cannot read, such as one without a face: the smallest cosine.
_UNLIKE = -1.0


@dataclass(frozen=True, kw_only=True)
class LikenessGate:
    """Lets adapters pass whose samples are like the pictures that they were trained on.

    The samples have the captions of those pictures.  Unlike the likeness that is reported, this one
    compares with training pictures: it is to find broken adapters, not to rank good ones.

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
        pictures = self.base.sample(prompts, seeds, factors, self.sampling)
        samples = pictures.unflatten(0, (len(subjects), self.samples))
        try:
            made = list(self.encoder.embed(pictures).unflatten(0, samples.shape[:2]))
        except PictureError:  # at least one subject's samples show no face, for example
            made = [self._embed(part) for part in samples]
        found = torch.tensor(
            [
                _UNLIKE if row is None else self._likeness(row, subject)
                for row, subject in zip(made, subjects, strict=True)
            ]
        )
        return Verdict(passed=found >= self.least, metrics={"likeness": found.tolist()})

    def _embed(self, samples: UInt8[Tensor, "s h w 3"]) -> Float[Tensor, "s m"] | None:
        """Embeddings of one subject's samples; None if the encoder cannot read them."""
        try:
            return self.encoder.embed(samples)
        except PictureError:
            return None

    def _likeness(self, made: Float[Tensor, "s m"], subject: Subject) -> float:
        try:
            real = self.encoder.embed(subject.pictures)
        except PictureError:
            return _UNLIKE
        return float(likeness(made[None], real[None]))
