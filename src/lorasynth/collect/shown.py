"""Subjects that an encoder can embed: the others are told before anything is trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorasynth.condition import ConditionEncoder, require_shown
from lorasynth.pictures import Subject, SubjectSource


@dataclass(frozen=True)
class ShownSubjects:
    """The subjects of a source, of which those cannot be loaded that `encoder` cannot embed."""

    source: SubjectSource
    encoder: ConditionEncoder

    @property
    def ids(self) -> Sequence[str]:
        """All of the source."""
        return self.source.ids

    def load(self, subject_id: str) -> Subject:
        """Load one from the source.

        Raises:
            PictureError: a picture cannot be used, or none shows what the encoder knows.
        """
        subject = self.source.load(subject_id)
        require_shown(self.encoder, subject)
        return subject
