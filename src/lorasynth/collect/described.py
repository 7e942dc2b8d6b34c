"""A library's subjects with what its table says of them, beside their images if there are any."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from lorasynth.collect.collector import RUN_COLUMNS
from lorasynth.collect.gate import GATE_COLUMNS
from lorasynth.core.errors import LibraryError
from lorasynth.images import Subject, SubjectSource
from lorasynth.library import Library

#: Columns of a library's table that say nothing of the subjects, but name them, or tell of the
#: training of their adapters.
NO_FACTS = frozenset({"id", "seconds", *RUN_COLUMNS, *GATE_COLUMNS})


def facts_of(library: Library) -> dict[str, dict[str, str | float]]:
    """The texts and numbers that the table has of each subject, but for those of its training."""
    return {
        row["id"]: {
            name: value if isinstance(value, str) else float(value)
            for name, value in row.items()
            if name not in NO_FACTS and isinstance(value, str | int | float)
        }
        for row in library.table.to_pylist()
    }


@dataclass(frozen=True)
class DescribedSubjects:
    """The subjects of a library.

    Attributes:
        library: whose table describes them.
        source: where their images come from; None for subjects without images.
    """

    library: Library
    source: SubjectSource | None = None

    @cached_property
    def _facts(self) -> dict[str, dict[str, str | float]]:
        return facts_of(self.library)

    @property
    def ids(self) -> Sequence[str]:
        """The library's subjects."""
        return self.library.ids

    def load(self, subject_id: str) -> Subject:
        """One subject, with its facts.

        Raises:
            LibraryError: the library has no such subject.
            ImageError: the source lacks its images, or one cannot be read.
        """
        if subject_id not in self._facts:
            raise LibraryError(f"a subject must be in the library, but {subject_id!r} is not")
        facts = self._facts[subject_id]
        if self.source is None:
            none = torch.zeros(0, 1, 1, 3, dtype=torch.uint8)
            return Subject(id=subject_id, photos=none, captions=[], attributes=facts)
        subject = self.source.load(subject_id)
        return replace(subject, attributes={**subject.attributes, **facts})
