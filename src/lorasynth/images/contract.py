"""What the rest of the system knows about images: subjects, and the places they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

#: What calls a subject in a caption where nobody says it.
TRIGGER = "sks"

#: What an image shows where nobody says it.
PORTRAIT = f"a portrait of {TRIGGER}"

#: Photos of one subject, RGB, 0 to 255; a tensor where all have one size.
Photos: TypeAlias = Sequence[UInt8[Tensor, "_ _ 3"]] | UInt8[Tensor, "k h w 3"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What one adapter is trained on.

    Attributes:
        id: a name that is unique in its source and stable over runs.
        photos: k of them, of any sizes.
        captions: one per photo; each says what varies between the photos, never who it is.
        attributes: facts about the subject (not about one photo), as plain JSON values.
        seen: what encoders saw in the photos as they were taken, by the encoder's fingerprint, so
            that each is looked at once.
    """

    id: str
    photos: Photos
    captions: Sequence[str]
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    seen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> UInt8[Tensor, "k h w 3"]:
        """The photos as one tensor, where all have one size, as those that are trained on have."""
        return self.photos if isinstance(self.photos, Tensor) else torch.stack(list(self.photos))


@runtime_checkable
class SubjectSource(Protocol):
    """A place that subjects come from; each is loaded only when asked for."""

    @property
    def ids(self) -> Sequence[str]:
        """The subjects in a stable order."""
        ...

    def load(self, subject_id: str) -> Subject:
        """Load one subject.

        Raises:
            ImageError: an image of the subject cannot be used.
        """
        ...


def stamp_of(source: SubjectSource, names: Sequence[str]) -> object:
    """What says that some subjects are still those of before: a source's own `stamp`, or itself."""
    stamp = getattr(source, "stamp", None)
    return [*names, stamp(names) if stamp else repr(source)]
