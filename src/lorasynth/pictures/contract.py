"""What the rest of the system knows about pictures: subjects, and the places they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What one adapter is trained on.

    Attributes:
        id: a name that is unique in its source and stable over runs.
        pictures: k pictures of equal size, RGB, 0 to 255.
        captions: one per picture; each says what varies between the pictures, never who it is.
        attributes: facts about the subject (not about one picture), as plain JSON values.
    """

    id: str
    pictures: UInt8[Tensor, "k h w 3"]
    captions: Sequence[str]
    attributes: Mapping[str, str | float] = field(default_factory=dict)


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
            PictureError: a picture of the subject cannot be used.
        """
        ...
