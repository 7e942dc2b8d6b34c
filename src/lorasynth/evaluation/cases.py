"""Test subjects: which images of each condition, which judge, and what is asked for.

Any source of subjects can be a benchmark (`SplitSubjects`).  A domain that knows more, such as
which attributes an image should show, has a source that says so itself (`TestSubjects`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lorasynth.core.errors import ConfigError, ImageError
from lorasynth.images import Subject, SubjectSource


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test subject.

    Attributes:
        reference: with the image or images that condition, and that nothing is judged by.
        judging: with other images of the subject.
        prompts: one for each image to make.
        described: the same with all that words can say of the subject; none where nobody knows.
        facts: what a domain's own metrics compare with, such as the attributes asked for.
        digest: identifies images and prompts.
    """

    reference: Subject
    judging: Subject
    prompts: Sequence[str]
    described: Sequence[str] = ()
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        """Hash the images, unless that was done before they were cut."""
        if not self.digest:
            digest = hashlib.sha256(repr([*self.prompts, *self.described]).encode())
            for photo in (*self.reference.photos, *self.judging.photos):
                digest.update(repr(tuple(photo.shape)).encode() + photo.numpy().tobytes())
            object.__setattr__(self, "digest", digest.hexdigest()[:16])

    @property
    def id(self) -> str:
        """Of the subject."""
        return self.reference.id


@runtime_checkable
class TestSubjects(SubjectSource, Protocol):
    """A source of test subjects; `load` gives the images that trained contenders learn from."""

    @property
    def key(self) -> Any:
        """JSON values that decide what `load` gives."""
        ...

    def case(self, subject_id: str, images: int) -> Case:
        """A subject with prompts for so many images.

        Raises:
            ImageError: the subject has too few images, or one cannot be used.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SplitSubjects:
    """Any source as test subjects: the first images of each condition, the others judge.

    Attributes:
        source: the subjects.
        prompts: that images are made for in turn.
        references: images that condition.
        subjects: how many, the first ones; None for all.
        skipped: of the first, which are left out before.
        judging: images that judge, the last ones, where trained contenders learn from all others;
            None: all but the references judge.
    """

    __test__ = False  # no test class

    source: SubjectSource
    prompts: Sequence[str]
    references: int = 1
    subjects: int | None = None
    skipped: int = 0
    judging: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no image can be made for."""
        if not self.prompts or self.references < 1:
            raise ConfigError(
                "a benchmark needs a prompt and an image that conditions, but got "
                f"{len(self.prompts)} prompts and references={self.references}"
            )

    @cached_property
    def ids(self) -> Sequence[str]:
        """The subjects in the source's order."""
        return list(self.source.ids)[self.skipped :][: self.subjects]

    @property
    def key(self) -> Any:
        """The images to learn from."""
        photos = (photo for name in self.ids for photo in self.load(name).photos)
        return [hashlib.sha256(photo.numpy().tobytes()).hexdigest()[:16] for photo in photos]

    def load(self, subject_id: str) -> Subject:
        """The images to learn from."""
        subject = self.source.load(subject_id)
        return self._part(subject, slice(self._judge_from(subject)))

    def case(self, subject_id: str, images: int) -> Case:
        """The subject with its images split."""
        subject = self.source.load(subject_id)
        start = self._judge_from(subject)
        if not self.references <= start < len(subject.photos):
            least = self.references + (self.judging or 1)
            raise ImageError(
                f"a test subject needs {least} images or more, {self.references} that condition "
                f"and others that judge, but {subject_id} has {len(subject.photos)}: add one, or "
                "leave it out"
            )
        return Case(
            reference=self._part(subject, slice(self.references)),
            judging=self._part(subject, slice(start, None)),
            prompts=[self.prompts[i % len(self.prompts)] for i in range(images)],
        )

    def _judge_from(self, subject: Subject) -> int:
        return len(subject.photos) - self.judging if self.judging else self.references

    def _part(self, subject: Subject, rows: slice) -> Subject:
        return replace(
            subject, photos=subject.photos[rows], captions=subject.captions[rows], seen={}
        )
