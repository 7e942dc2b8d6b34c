"""A contact sheet of what is trained on: the crops of subjects' photos."""

import io
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch

from lorasynth.condition import ConditionEncoder, framed_subject
from lorasynth.core.atomic import write_bytes
from lorasynth.core.errors import ImageError
from lorasynth.images import Subject, SubjectSource, to_image
from lorasynth.images.png import contact_sheet

#: Subjects, and images of each, that a sheet has room for.
_ROWS, _COLUMNS = 16, 8


def write_sheet(path: Path, subjects: Iterable[Subject]) -> None:
    """Write a PNG with a row for each of the first subjects, which are cut already.

    Raises:
        LorasynthError: the file cannot be written.
    """
    rows, names = [], []
    for subject in islice(subjects, _ROWS):
        images = subject.images[:_COLUMNS]
        white = images.new_full((_COLUMNS - len(images), *images.shape[1:]), 255)
        rows.append(torch.cat([images, white]))
        names.append(subject.id)
    if rows:
        data = io.BytesIO()
        to_image(contact_sheet(torch.cat(rows), _COLUMNS, names=names)).save(data, "PNG")
        write_bytes(path, data.getvalue())


def cut_subjects(
    source: SubjectSource, size: int, encoders: Sequence[ConditionEncoder]
) -> Iterable[Subject]:
    """Subjects as they are trained on; those that cannot be used are passed over."""
    for name in source.ids:
        try:
            yield framed_subject(source.load(name), size, encoders)
        except ImageError:
            continue
