"""A contact sheet of what is trained on: the crops of subjects' photos."""

import io
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from lorasynth.condition import ConditionEncoder, framed_subject
from lorasynth.core.atomic import write_bytes
from lorasynth.core.errors import ImageError
from lorasynth.images import Subject, SubjectSource, to_image
from lorasynth.images.framing import framed
from lorasynth.images.png import contact_sheet

#: Subjects, images of each, and pixels of the side of each that a sheet has room for.
_ROWS, _COLUMNS, _SIDE = 16, 8, 160


def write_sheet(path: Path, subjects: Iterable[Subject]) -> None:
    """Write a PNG with a row for each of the first subjects, which are cut already.

    Raises:
        LorasynthError: the file cannot be written.
    """
    shown = {one.id: thumbnails(one.images[:_COLUMNS]) for one in islice(subjects, _ROWS)}
    if not shown:
        return
    columns, rows = max(map(len, shown.values())), list[Tensor]()
    for images in shown.values():
        white = images.new_full((columns - len(images), *images.shape[1:]), 255)
        rows.append(torch.cat([images, white]))
    data = io.BytesIO()
    to_image(contact_sheet(torch.cat(rows), columns, names=list(shown))).save(data, "PNG")
    write_bytes(path, data.getvalue())


def thumbnails(squares: UInt8[Tensor, "k h w 3"]) -> UInt8[Tensor, "k s s 3"]:
    """Square images as they are, or with 160 pixels if they have more."""
    return torch.stack([framed(one, min(_SIDE, one.shape[0])) for one in squares])


def cut_subjects(
    source: SubjectSource, ids: Sequence[str], size: int, encoders: Sequence[ConditionEncoder]
) -> Iterable[Subject]:
    """Subjects as they are trained on; those that cannot be used are passed over."""
    for name in ids:
        try:
            yield framed_subject(source.load(name), size, encoders)
        except ImageError:
            continue
