"""One of n parts of a collection, for machines that share nothing but a disk.

A library has one writer, so each part is a library of its own, at `<library>/parts/<i>-of-<n>`.
Beside it, `<i>-of-<n>.part.json` says of which source it is a part: all of its subjects, in order.
`lorasynth.collect.join` brings the parts together.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasynth.core.atomic import write_json
from lorasynth.core.config import read_json
from lorasynth.core.errors import CollectionError, ConfigError
from lorasynth.images import Subject, SubjectSource


@dataclass(frozen=True)
class Part:
    """Part `number`, counted from 1, of `count`: every `count`-th subject of the source."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `i/n`.

        Raises:
            ConfigError: it is not that, or i is not from 1 to n.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        part = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= part.number <= part.count:
            raise ConfigError(
                f"--shard must be i/n with i from 1 to n, such as 2/8, but is {text!r}"
            )
        return part

    def of(self, ids: Sequence[str]) -> Sequence[str]:
        """The subjects of this part, in the source's order."""
        return ids[self.number - 1 :: self.count]

    def path_in(self, library: Path) -> Path:
        """Where the part's own library is."""
        return library / "parts" / f"{self.number}-of-{self.count}"


@dataclass(frozen=True)
class ChosenSubjects:
    """Some of the subjects of a source."""

    source: SubjectSource
    chosen: Sequence[str]

    @property
    def ids(self) -> list[str]:
        """Those that were chosen, in the order in which they were."""
        return list(self.chosen)

    def load(self, subject_id: str) -> Subject:
        """Load one from the source.

        Raises:
            ImageError: an image of the subject cannot be used.
        """
        return self.source.load(subject_id)


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What is known of a part beside its library.

    Attributes:
        part: which it is.
        ids: all subjects of the source, in order.
    """

    part: Part
    ids: Sequence[str]

    @staticmethod
    def beside(path: Path) -> Path:
        """Where the record of the part at `path` is."""
        return path.with_name(f"{path.name}.part.json")

    @classmethod
    def read(cls, path: Path) -> "PartRecord":
        """The record of the part whose library is at `path`.

        Raises:
            CollectionError: there is none, or it is not one.
        """
        file = cls.beside(path)
        if not file.is_file():
            raise CollectionError(
                f"a part must have been collected with --shard, but {file} is not there: collect "
                "it, or name other parts"
            )
        stated: dict[str, Any] = read_json(file)
        try:
            part = Part(int(stated["number"]), int(stated["count"]))
            return cls(part=part, ids=[str(name) for name in stated["ids"]])
        except (KeyError, TypeError, ValueError) as error:
            raise CollectionError(
                f"the record of a part must state number, count and ids, but {file} does not "
                f"({error!r}): collect the part again to write it anew"
            ) from error


def begin_part(source: SubjectSource, library: Path, part: Part) -> tuple[SubjectSource, Path]:
    """The subjects of a part and the path of its library, after writing its record.

    Raises:
        CollectionError: the part has no subject, or was begun with another source.
    """
    ids, path = list(source.ids), part.path_in(library)
    chosen = part.of(ids)
    if not chosen:
        raise CollectionError(
            f"a part must have at least one subject, but of {len(ids)} subjects part "
            f"{part.number} of {part.count} has none: use fewer parts"
        )
    if PartRecord.beside(path).is_file() and PartRecord.read(path).ids != ids:
        raise CollectionError(
            f"all runs of a part must have one source, but {path} was begun with other subjects: "
            "use those, or another library"
        )
    stated = {"number": part.number, "count": part.count, "ids": ids}
    write_json(PartRecord.beside(path), stated)
    return ChosenSubjects(source, chosen), path
