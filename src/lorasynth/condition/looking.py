"""A subject as it is trained on: each photo is looked at once, and cut to what it shows."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lorasynth.condition.contract import ConditionEncoder, Seen, subject_conditions
from lorasynth.images import Subject
from lorasynth.images.framing import Box, framed


def framed_subject(
    subject: Subject, size: int, encoders: Sequence[ConditionEncoder] = ()
) -> Subject:
    """A subject as squares of one size, with what encoders saw in the whole photos.

    The squares are around the face that the first encoder of faces finds (`framing.frame`).  The
    encoders see whole photos, as they do when a synthesizer is used.

    Args:
        subject: with photos of any sizes.
        size: side of the squares in pixels.
        encoders: that the subject will be embedded with.

    Raises:
        ImageError: none of its photos shows what an encoder knows.
    """
    looking = {encoder.fingerprint: encoder for encoder in encoders if encoder.looks}
    seen: dict[str, Seen] = {name: one.see(subject.photos) for name, one in looking.items()}
    carrying = replace(subject, seen=seen)
    for encoder in looking.values():
        subject_conditions(encoder, carrying)  # refuses a subject in which it finds nothing
    found = [one.boxes for one in seen.values() if any(one.boxes)]
    boxes: Sequence[Box | None] = found[0] if found else [None] * len(subject.photos)
    pairs = zip(subject.photos, boxes, strict=True)
    squares = [framed(photo, size, box) for photo, box in pairs]
    return replace(carrying, photos=torch.stack(squares))
