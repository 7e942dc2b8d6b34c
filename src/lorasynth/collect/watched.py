"""Samples of subjects that nothing is learned from, while something is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.base import MEASURED, BaseModel
from lorasynth.collect.sheet import cut_subjects, thumbnails
from lorasynth.condition import SHOWN, ConditionEncoder, seen_in, subject_conditions
from lorasynth.condition.similarity import likeness
from lorasynth.core.errors import ImageError
from lorasynth.core.randomness import stream_seed
from lorasynth.images import Subject, SubjectSource
from lorasynth.images.png import contact_sheet, write_synthetic

#: Samples of each subject, and the most subjects that they are made of.
_EACH, MOST = 2, 8
#: Passes of the base model that a subject costs: with guidance, and about three for the pixels.
PASSES = _EACH * (2 * MEASURED.steps + 3)


@dataclass(frozen=True)
class Watched:
    """Makes samples with adapters of a few subjects, and compares them with real images.

    Attributes:
        base: makes the samples.
        encoder: makes the conditions, and compares.
        source: of the subjects.
        ids: of those of which some are taken.
        folder: of PNGs by step, with a row for each subject: the image that is the condition, and
            samples.
        most: subjects that are taken.
    """

    base: BaseModel
    encoder: ConditionEncoder
    source: SubjectSource
    ids: Sequence[str]
    folder: Path
    most: int = MOST

    @cached_property
    def subjects(self) -> list[Subject]:
        """Read when they are first needed.

        Raises:
            ImageError: none can be used.
        """
        apart = self.ids[:: max(len(self.ids) // self.most, 1)][: self.most]
        found = list(cut_subjects(self.source, apart, self.base.image_size, [self.encoder]))
        if not found:
            raise ImageError(
                "samples need a subject that is not learned from and can be used, but there is none"
            )
        return found

    @cached_property
    def conditions(self) -> Float[Tensor, "n m"]:
        """Of the first image of each that shows it."""
        return torch.stack([subject_conditions(self.encoder, one)[0] for one in self.subjects])

    def __call__(self, factors: Factors, step: int) -> Mapping[str, float]:
        """Draw samples with n adapters; the mean `similarity` to a subject's other images."""
        prompts = [text for one in self.subjects for text in islice(cycle(one.captions), _EACH)]
        seeds = [stream_seed(0, "watched", i) for i in range(len(prompts))]
        images = self.base.sample(prompts, seeds, factors, MEASURED)
        made = self.encoder.see(images).embeddings
        names, rows, total = list[str](), list[Tensor](), 0.0
        for i, subject in enumerate(self.subjects):
            own, seen = slice(i * _EACH, (i + 1) * _EACH), seen_in(self.encoder, subject)
            first = int((seen.presence >= SHOWN).nonzero()[0])
            others = [j for j in range(len(seen.presence)) if j != first] or [first]
            found = float(likeness(made[None, own], seen.embeddings[None, others]))
            names.append(f"{subject.id} {found:.2f}")
            rows += [subject.images[first : first + 1], images[own]]
            total += found
        strip = contact_sheet(thumbnails(torch.cat(rows)), 1 + _EACH, names=names)
        facts = {"Description": "The first image of each row is real, the others are synthetic."}
        write_synthetic(self.folder / f"{step:06d}.png", strip, facts)
        return {"similarity": total / len(names)}
