"""Contact sheets of what is trained on, and of samples while something is trained."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.base import MEASURED, BaseModel
from lorasynth.condition import (
    SHOWN,
    ConditionEncoder,
    framed_subject,
    seen_in,
    subject_conditions,
)
from lorasynth.condition.similarity import likeness
from lorasynth.core.atomic import write_bytes
from lorasynth.core.errors import ImageError
from lorasynth.core.randomness import stream_seed
from lorasynth.images import Photos, Subject, SubjectSource, to_image
from lorasynth.images.framing import Sides, framed
from lorasynth.images.png import contact_sheet, write_synthetic

#: Subjects, images of each, and pixels of the side of each that a sheet has room for.
_ROWS, _COLUMNS, _SIDE = 16, 8, 160
#: Samples of each subject, and the most subjects that they are made of.
_EACH, MOST = 2, 8
#: Passes of the base model that a subject costs: with guidance, and about three for the pixels.
PASSES = _EACH * (2 * MEASURED.steps + 3)


def write_sheet(path: Path, subjects: Iterable[Subject]) -> None:
    """Write a PNG with a row for each of the first subjects, which are cut already.

    Raises:
        LorasynthError: the file cannot be written.
    """
    shown = {one.id: _small(one.photos[:_COLUMNS]) for one in islice(subjects, _ROWS)}
    if shown:
        columns = max(map(len, shown.values()))
        rows = [
            torch.cat([images, images.new_full((columns - len(images), *images.shape[1:]), 255)])
            for images in shown.values()
        ]
        data = io.BytesIO()
        to_image(contact_sheet(torch.cat(rows), columns, names=list(shown))).save(data, "PNG")
        write_bytes(path, data.getvalue())


def _small(photos: Photos) -> UInt8[Tensor, "k s s 3"]:
    """Images on white squares of 160 pixels, or of their longest side if that is less."""
    side = min(_SIDE, max(max(one.shape[:2]) for one in photos))
    small = []
    for one in photos:
        scale = side / max(one.shape[:2])
        height, width = (round(scale * length) for length in one.shape[:2])
        square = one.new_full((side, side, 3), 255)
        square[:height, :width] = framed(one, [(height, width)])
        small.append(square)
    return torch.stack(small)


def cut_subjects(
    source: SubjectSource,
    ids: Sequence[str],
    size: int | Sequence[Sides],
    encoders: Sequence[ConditionEncoder],
) -> Iterable[Subject]:
    """Subjects as they are trained on; those that cannot be used are passed over."""
    for name in ids:
        try:
            yield framed_subject(source.load(name), size, encoders)
        except ImageError:
            continue


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
        """Read when they are first needed."""
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
        for subject, start in zip(self.subjects, range(0, len(made), _EACH), strict=True):
            own, seen = slice(start, start + _EACH), seen_in(self.encoder, subject)
            first = int((seen.presence >= SHOWN).nonzero()[0])
            others = [j for j in range(len(seen.presence)) if j != first] or [first]
            found = float(likeness(made[None, own], seen.embeddings[None, others]))
            names.append(f"{subject.id} {found:.2f}")
            rows += [subject.images[first : first + 1], images[own]]
            total += found
        strip = contact_sheet(_small(torch.cat(rows)), 1 + _EACH, names=names)
        facts = {"Description": "The first image of each row is real, the others are synthetic."}
        write_synthetic(self.folder / f"{step:06d}.png", strip, facts)
        return {"similarity": total / len(names)}
