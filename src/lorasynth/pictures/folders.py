"""Subjects as folders of pictures: one folder per subject, a caption in a text file of its name."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorasynth.errors import PictureError
from lorasynth.pictures.contract import Subject
from lorasynth.pictures.files import pictures_in, read_photo

DEFAULT_CAPTION = "a portrait of sks"


def read_subject(
    name: str, paths: Sequence[Path], default_caption: str = DEFAULT_CAPTION
) -> Subject:
    """Read one subject from its picture files, each with its caption as `FolderSubjects` says.

    Raises:
        PictureError: a picture or a caption cannot be read.
    """
    return Subject(
        id=name,
        photos=[read_photo(path) for path in paths],
        captions=[_caption(path, default_caption) for path in paths],
    )


@dataclass(frozen=True)
class FolderSubjects:
    """A source that reads `root/<subject>/<picture>`.

    A picture's caption is read from `<picture>.txt` beside it, else it is `default_caption`.
    """

    root: Path
    default_caption: str = DEFAULT_CAPTION

    @cached_property
    def _folders(self) -> dict[str, Path]:
        if not self.root.is_dir():
            raise PictureError(
                f"subjects must be a folder with one folder each, but {self.root} is not a folder"
            )
        folders = sorted(p for p in self.root.iterdir() if p.is_dir() and pictures_in(p))
        return {folder.name: folder for folder in folders}

    @property
    def ids(self) -> list[str]:
        """The names of the folders that hold at least one picture."""
        return list(self._folders)

    def load(self, subject_id: str) -> Subject:
        """Read a subject's pictures and captions.

        Raises:
            PictureError: the folder, one of its pictures or a caption cannot be read.
        """
        if subject_id not in self._folders:
            raise PictureError(
                f"a subject must be a folder of pictures in {self.root}, but {subject_id!r} is "
                "none: check the name"
            )
        paths = pictures_in(self._folders[subject_id])
        return read_subject(subject_id, paths, self.default_caption)


def _caption(picture: Path, default: str) -> str:
    text = picture.with_suffix(".txt")
    if not text.is_file():
        return default
    try:
        return text.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise PictureError(
            f"a caption must be text in UTF-8, but {text} is not ({error}): save it as UTF-8"
        ) from error
