"""Subjects of a library whose images are made with its adapters, where no others are at hand."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import map_factors
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.base.compatibility import require_fits
from lorasynth.collect.described import DescribedSubjects, facts_of
from lorasynth.collect.embedding import embed_library
from lorasynth.condition import SHOWN, ConditionEncoder, seen_in, subject_conditions
from lorasynth.core.errors import ConfigError, LibraryError
from lorasynth.core.randomness import stream_seed
from lorasynth.images import Subject, subjects_in
from lorasynth.library import Library

#: Adapters whose images are looked at before those of all are made.
_FIRST = 16


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """How a library's adapters are made to show their subjects.

    Attributes:
        prompt: asked of every adapter; it should hold the words that it was trained with.
        images: of each adapter.
        seed: of the noise.
        sampling: how images are made; its batch bounds how many adapters are attached at once.
    """

    prompt: str = "a photo of sks person"
    images: int = 4
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError(
                f"an adapter must make at least one image, but images is {self.images}"
            )


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
        fleet = max(config.sampling.batch // each, 1)
        for start in range(0, len(ids), fleet):
            some = ids[start : start + fleet]
            stored = self.library.factors(rows[start : start + fleet])
            adapters = map_factors(lambda part: part.to(self.base.dtype), stored)
            seeds = [stream_seed(config.seed, "generated", i, k) for i in some for k in range(each)]
            made = self.base.sample([config.prompt] * len(seeds), seeds, adapters, config.sampling)
            for subject_id, images in zip(some, made.split(each), strict=True):
                yield Subject(
                    id=subject_id,
                    photos=images,
                    captions=[config.prompt] * each,
                    attributes=self._facts[subject_id],
                )

    def embeddings(
        self, encoder: ConditionEncoder, ids: Sequence[str]
    ) -> Iterator[Float[Tensor, "k m"]]:
        """The conditions of each subject, as `embed_library` takes them."""
        return (subject_conditions(encoder, one, made=True) for one in self.many(ids))

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
                "trained on, their prompt (the setting `prompt`), or --images"
            )


def embed_imported(
    library: Library,
    encoder: ConditionEncoder,
    images: Path | None,
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
        return made.embeddings(encoder, ids)

    return embed_library(library, made, encoder, embed)
