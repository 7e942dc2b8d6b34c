"""Subjects in tar files, named as webdataset does: `<subject>.<n>.jpg`, its caption `.txt`.

The files are never unpacked: their headers say where each picture begins, and it is read there.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lorasynth.errors import PictureError
from lorasynth.pictures.contract import Subject
from lorasynth.pictures.files import SUFFIXES, decode_photo
from lorasynth.pictures.folders import DEFAULT_CAPTION


class _Member(NamedTuple):
    """Where one file of a tar lies."""

    tar: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.name} of {self.tar}"


@dataclass(frozen=True)
class TarSubjects:
    """A source that reads the pictures in one tar file, or in all `*.tar` of a folder.

    A subject's pictures come in the order of their names, and may be spread over several tars.  A
    picture without a caption has `default_caption`.
    """

    root: Path
    default_caption: str = DEFAULT_CAPTION

    @cached_property
    def _subjects(self) -> dict[str, dict[str, dict[str, _Member]]]:
        """Subject -> number -> suffix -> file."""
        tars = sorted(self.root.glob("*.tar")) if self.root.is_dir() else [self.root]
        found: dict[str, dict[str, dict[str, _Member]]] = {}
        for member in (member for tar in tars for member in _members(tar)):
            stem, _, suffix = member.name.rpartition(".")
            subject, _, number = stem.rpartition(".")
            if subject and f".{suffix.lower()}" in (*SUFFIXES, ".txt"):
                files = found.setdefault(subject, {}).setdefault(number, {})
                files[".txt" if suffix.lower() == "txt" else "picture"] = member
        pictured = {
            subject: {
                number: files for number, files in sorted(numbers.items()) if "picture" in files
            }
            for subject, numbers in sorted(found.items())
        }
        return {subject: numbers for subject, numbers in pictured.items() if numbers}

    @property
    def ids(self) -> list[str]:
        """The subjects that have at least one picture, sorted.

        Raises:
            PictureError: a file is no tar, is compressed, or ends too soon.
        """
        return list(self._subjects)

    def load(self, subject_id: str) -> Subject:
        """Read a subject's pictures and captions.

        Raises:
            PictureError: there is no such subject, or a picture or caption cannot be read.
        """
        if subject_id not in self._subjects:
            raise PictureError(
                f"a subject must have files <subject>.<number>.jpg in {self.root}, but "
                f"{subject_id!r} has none: check the name"
            )
        samples = self._subjects[subject_id].values()
        pictures = [files["picture"] for files in samples]
        return Subject(
            id=subject_id,
            photos=[decode_photo(io.BytesIO(one.read()), str(one)) for one in pictures],
            captions=[self._caption(files.get(".txt")) for files in samples],
        )

    def _caption(self, member: _Member | None) -> str:
        if member is None:
            return self.default_caption
        try:
            return member.read().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise PictureError(
                f"a caption must be text in UTF-8, but {member} is not ({error}): save it as UTF-8"
            ) from error


def _members(path: Path) -> Iterator[_Member]:
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                if entry.isreg() and not entry.issparse():
                    name = entry.name.removeprefix("./")
                    yield _Member(path, name, entry.offset_data, entry.size)
    except (OSError, tarfile.TarError) as error:
        raise PictureError(
            f"subjects may be in tar files, whole and not compressed, but {path} is not one "
            f"({error}): unpack or make it again"
        ) from error
