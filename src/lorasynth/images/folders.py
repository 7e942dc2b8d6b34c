"""Subjects as folders of images, each with its caption in a text file beside it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import override

from lorasynth.core.errors import ImageError
from lorasynth.images.contract import PORTRAIT, Subject
from lorasynth.images.files import read_photo
from lorasynth.images.indexed import (
    CAPTION_SUFFIXES,
    MAX_CAPTION_BYTES,
    Indexed,
    Shown,
    Tally,
    caption_text,
    is_system,
)


def images_in(folder: Path | str, tally: Tally | None = None) -> list[Path]:
    """The image files of a folder, by name, not of its subfolders.

    Raises:
        ImageError: the folder cannot be read.
    """
    tally, entries = tally or Tally(), _entries(Path(folder))
    found = [path for path in entries if not path.is_dir() and _is_image(path, tally)]
    named = {path.stem for path in found}
    for path in entries:
        is_caption = path.suffix.lower() in CAPTION_SUFFIXES and not is_system(path.name)
        if is_caption and path.stem not in named:
            tally.pass_over("captions without an image", path.name)
    return found


def _is_image(path: Path, tally: Tally) -> bool:
    if tally.sort(path.name):
        if path.is_file():
            return True
        tally.images -= 1
        tally.pass_over("links to nothing, or no files", path.name)
    return False


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ImageError(
            f"a folder of images must be readable, but {folder} is not ({error.strerror}): check "
            "the path and its permissions"
        ) from error


def subjects_below(root: Path, tally: Tally | None = None) -> dict[str, list[Path]]:
    """The images of each folder in a folder, by its name; folders without images are left out.

    Links are followed, but not to a folder that the link is in.

    Raises:
        ImageError: `root` is no folder, or cannot be read.
    """
    if not root.is_dir():
        raise ImageError(
            f"subjects must be a folder with one folder each, but {root} is not a folder"
        )
    tally, found = tally or Tally(), dict[str, list[Path]]()
    for path in _entries(root):
        name = path.name
        if not path.is_dir():
            if _is_image(path, tally):
                tally.images -= 1
                tally.pass_over("beside the folders of subjects", name)
        elif is_system(name):
            tally.pass_over("hidden or a system's", name)
        elif root.resolve().is_relative_to(path.resolve()):
            tally.pass_over("links in a circle", name)
        elif tally.is_utf8(name):
            try:
                found[name] = images_in(path, tally)
            except ImageError:
                tally.pass_over("folders that cannot be read", name)
                continue
            if not found[name]:
                tally.pass_over("folders without images", name)
                del found[name]
    tally.subjects = len(found)
    return found


class FolderSubjects(Indexed):
    """A source that reads `root/<subject>/<image>`.

    An image's caption is read from `<image>.txt` or `<image>.caption` beside it, else it is
    `default_caption`.
    """

    told = "be a folder of images in", "is none"

    @override
    def _index(self, tally: Tally) -> dict[str, list[Shown]]:
        below = subjects_below(self.root, tally)
        found = {name: _with_captions(paths) for name, paths in below.items()}
        tally.captions = sum(one.caption is not None for many in found.values() for one in many)
        return found

    @override
    def _photos(self, places: Sequence[Path]) -> list[UInt8[Tensor, "h w 3"]]:
        return [read_photo(path) for path in places]

    @override
    def _caption(self, place: Path) -> str:
        return _caption(place)


def read_subject(
    name: str | None, paths: Sequence[Path], default_caption: str = PORTRAIT
) -> Subject:
    """Read one subject from its image files, each with its caption as `FolderSubjects` says.

    Its name is that of its random numbers, too; None names it after its images, so that nothing
    but them decides what is made of it.

    Raises:
        ImageError: an image or a caption cannot be read.
    """
    photos, digest = [read_photo(path) for path in paths], hashlib.sha256()
    for photo in photos:
        digest.update(photo.numpy().tobytes())
    texts = [one.caption for one in _with_captions(paths)]
    return Subject(
        id=name or digest.hexdigest()[:16],
        photos=photos,
        captions=[default_caption if text is None else _caption(text) for text in texts],
    )


def _with_captions(paths: Sequence[Path]) -> list[Shown]:
    """Images with their captions' files."""
    texts = dict[tuple[Path, str], Path]()
    for folder in {path.parent for path in paths}:
        entries = _entries(folder)
        for suffix in reversed(CAPTION_SUFFIXES):
            mine = (p for p in entries if p.suffix.lower() == suffix and not is_system(p.name))
            texts.update({(folder, p.stem): p for p in mine if p.is_file()})
    return [Shown(path, texts.get((path.parent, path.stem))) for path in paths]


def _caption(path: Path) -> str:
    size = path.stat().st_size
    return caption_text(path.read_bytes() if size <= MAX_CAPTION_BYTES else size, str(path))
