"""A library's subjects: what its table says of them, and their images, given or generated."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import map_factors
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.base.compatibility import require_fits
from lorasynth.collect.config import GeneratedConfig
from lorasynth.collect.embedding import embed_library
from lorasynth.condition import SHOWN, ConditionEncoder, seen_in, subject_conditions
from lorasynth.core.errors import LibraryError
from lorasynth.core.randomness import stream_seed
from lorasynth.images import Subject, SubjectSource, subjects_in
from lorasynth.library import Library

#: What a library's table says of the training of each adapter, rather than of its subject.
RUN_COLUMNS = ("seed", "recipe", "attempt", "images", "loss", "losses")

#: Columns of a library's table that name the subjects, or tell of the training of their adapters;
#: the last ones are of earlier releases.
NO_FACTS = frozenset({"id", *RUN_COLUMNS, "similarity", "seconds", "pictures", "likeness"})

#: Adapters whose images are looked at before those of all are made.
_FIRST = 16


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


class GeneratedSubjects:
    """The subjects of a library, as their adapters show them."""

    def __init__(self, base: BaseModel, library: Library, config: GeneratedConfig) -> None:
        self.base = base
        self.library = library
        self.config = config
        self._facts = facts_of(library)

    @property
    def ids(self) -> Sequence[str]:
        """The library's subjects."""
        return self.library.ids

    def load(self, subject_id: str) -> Subject:
        """Make one subject's images.

        Raises:
            LibraryError: the library has no such subject.
            LayoutError: its adapters do not fit the base model.
        """
        [subject] = self.many([subject_id])
        return subject

    def many(self, ids: Sequence[str]) -> Iterator[Subject]:
        """Make the images of several subjects, as many at once as fit into a batch.

        The noise is named by the subject, so an image does not depend on the others.
        """
        config, each, rows = self.config, self.config.images, self.library.rows_of(ids)
        sampling = SamplingConfig(steps=config.steps, guidance=config.guidance, batch=config.batch)
        fleet = max(config.batch // each, 1)
        for start in range(0, len(ids), fleet):
            some = ids[start : start + fleet]
            stored = self.library.factors(rows[start : start + fleet])
            adapters = map_factors(lambda part: part.to(self.base.dtype), stored)
            seeds = [stream_seed(config.seed, "generated", i, k) for i in some for k in range(each)]
            made = self.base.sample([config.prompt] * len(seeds), seeds, adapters, sampling)
            for subject_id, images in zip(some, made.split(each), strict=True):
                yield Subject(
                    id=subject_id,
                    photos=images,
                    captions=[config.prompt] * each,
                    attributes=self._facts[subject_id],
                )

    def require_shown(self, encoder: ConditionEncoder, ids: Sequence[str]) -> None:
        """Look at images of a few subjects before those of all are made, which may take days.

        Raises:
            LibraryError: in none of them is there anything that the encoder knows.
        """
        seen = (seen_in(encoder, subject) for subject in self.many(ids))
        if encoder.looks and not any(bool((one.presence >= SHOWN).any()) for one in seen):
            raise LibraryError(
                f"images that adapters make must show what the encoder {encoder.name} knows, but "
                f"none of those of the first {len(ids)} do: give the base model that they were "
                "trained on, their prompt (--generated.prompt), or --images"
            )


def embed_imported(
    library: Library,
    encoder: ConditionEncoder,
    images: Path | str | None,
    base: Callable[[], BaseModel],
    config: GeneratedConfig,
) -> Float[Tensor, "N P m"]:
    """Embed the subjects of a library that others made, and attach the embeddings as a column.

    Args:
        library: whose table tells what else is known of them.
        encoder: of any kind.
        images: where theirs are, as `subjects_in` reads them; None: adapters make them, unless
            the encoder knows facts alone.
        base: loads the base model, if it is needed.
        config: how adapters make images.

    Raises:
        LibraryError: the library is empty, or its first adapters' images show nothing that the
            encoder knows.
        LayoutError: its adapters do not fit the base model.
        ImageError: a subject has no images, or one cannot be read, or shows no face.
    """
    if images is not None or not encoder.looks:
        source = None if images is None else subjects_in(images)
        return embed_library(library, DescribedSubjects(library, source), encoder)
    model = base()
    require_fits(model, library.layout)
    made = GeneratedSubjects(model, library, config)

    def embed(ids: Sequence[str]) -> Iterator[Float[Tensor, "k m"]]:
        if ids[0] == library.ids[0]:
            made.require_shown(encoder, ids[:_FIRST])
        return (subject_conditions(encoder, one, made=True) for one in made.many(ids))

    return embed_library(library, made, encoder, embed)
