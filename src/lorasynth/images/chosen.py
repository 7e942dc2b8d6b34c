"""Some subjects and images of another source, with captions and splits, as a table says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lorasynth.core.atomic import atomic_file
from lorasynth.core.errors import ConfigError, ImageError, reason_of
from lorasynth.images.contract import Subject, SubjectSource, stamp_of
from lorasynth.images.sources import SOURCES, subjects_in

_SCHEMA = pa.schema(
    [("id", pa.string()), ("photo", pa.int32()), ("caption", pa.string()), ("split", pa.string())]
)


class Choice(NamedTuple):
    """What is taken of a subject.

    Attributes:
        photos: their places among the subject's.
        captions: one for each.
        split: of the subject.
    """

    photos: Sequence[int]
    captions: Sequence[str]
    split: str


def write_choices(path: Path, choices: Mapping[str, Choice]) -> None:
    """Write a table for `ChosenSubjects`, with a row for each image.

    Raises:
        LorasynthError: it cannot be written.
    """
    rows = [
        {"id": name, "photo": photo, "caption": caption, "split": one.split}
        for name, one in choices.items()
        for photo, caption in zip(one.photos, one.captions, strict=True)
    ]
    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary)


def read_choices(path: Path) -> dict[str, Choice]:
    """What `write_choices` wrote.

    Raises:
        ImageError: the table cannot be read.
    """
    try:
        rows = pq.read_table(path, schema=_SCHEMA).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ImageError(
            f"a table of chosen subjects must be readable, but {path} is not "
            f"({reason_of(error)}): make it again"
        ) from error
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    return {
        name: Choice([r["photo"] for r in of], [r["caption"] for r in of], of[0]["split"])
        for name, of in found.items()
    }


class ChosenSubjects:
    """A source that takes what a table names of another source.

    Attributes:
        table: Parquet file with the columns id, photo, caption and split.
        source: the other source.
    """

    def __init__(self, table: Path, source: SubjectSource) -> None:
        self.table, self.source = table, source

    @cached_property
    def choices(self) -> Mapping[str, Choice]:
        """What is taken of each subject.

        Raises:
            ImageError: the table cannot be read.
        """
        return read_choices(self.table)

    @property
    def ids(self) -> list[str]:
        """The subjects in the table's order."""
        return list(self.choices)

    @property
    def splits(self) -> dict[str, str]:
        """The split of each subject."""
        return {name: one.split for name, one in self.choices.items()}

    def stamp(self, names: Sequence[str]) -> object:
        """Changes when what is chosen of some subjects does, or their files."""
        chosen = [self.choices[name] for name in names]
        return [chosen, stamp_of(self.source, names)]

    def load(self, subject_id: str) -> Subject:
        """A subject with the photos and captions of the table.

        Raises:
            ImageError: the table does not name it, or the images are no longer what they were.
        """
        if subject_id not in self.choices:
            raise ImageError(f"a subject must be in {self.table}, but {subject_id!r} is not")
        whole, one = self.source.load(subject_id), self.choices[subject_id]
        if max(one.photos) >= len(whole.photos):
            raise ImageError(
                f"the images of {subject_id!r} must be those that {self.table} was made of, but "
                f"there are only {len(whole.photos)} now: make the table again"
            )
        photos = [whole.photos[photo] for photo in one.photos]
        return replace(whole, photos=photos, captions=one.captions, seen={})


@SOURCES.register("chosen")
def named_choices(argument: str, size: int) -> ChosenSubjects:
    """`chosen:TABLE:IMAGES`, where IMAGES is any source.

    Raises:
        ConfigError: one of the two is missing.
    """
    table, _, images = argument.partition(":")
    if not Path(table).is_file() or not images:
        raise ConfigError(
            f"chosen subjects must be chosen:TABLE:IMAGES, but got chosen:{argument}: name both"
        )
    return ChosenSubjects(Path(table), subjects_in(images, size=size))
