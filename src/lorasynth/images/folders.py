"""Subjects as folders of images, and which files of a folder count: one rule for all commands."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from lorasynth.core.errors import ImageError
from lorasynth.core.progress import note
from lorasynth.images.contract import PORTRAIT, Subject
from lorasynth.images.files import OTHER_SUFFIXES, SUFFIXES, read_photo, readable_formats

#: What a caption's file is called, beside the image of the same name; in capitals, too.
CAPTION_SUFFIXES = (".txt", ".caption")
#: Larger captions are refused unread.
MAX_CAPTION_BYTES = 64 << 10
#: Files and folders that systems make; so are all whose names begin with a dot.
_SYSTEMS = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle"),
        *("$recycle.bin", "system volume information", "lost+found"),
    }
)


def is_system(path: Path | str) -> bool:
    """Whether a file or folder, or one that it is in, is a system's own; `.` and `..` are not."""
    return any(
        part.lower() in _SYSTEMS or (part.startswith(".") and part.strip("."))
        for part in Path(path).parts
    )


@dataclass
class Tally:
    """What of a source is used, and what is passed over and why; said in one line."""

    images: int = 0
    subjects: int = 0
    captions: int | None = None
    #: Reason -> names.
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def sort(self, name: str) -> bool:
        """Whether a file is an image that is used; if not, it is noted why (captions are not)."""
        suffix = Path(name).suffix.lower()
        if is_system(name):
            reason = "hidden or a system's"
        elif suffix in (".heic", ".heif") and "HEIF" not in readable_formats():
            reason = "HEIC, which needs pip install 'lorasynth[heic]'"
        elif suffix in SUFFIXES:
            self.images += 1
            return True
        elif suffix in OTHER_SUFFIXES:
            reason = "images in a format that is not read"
        elif suffix in CAPTION_SUFFIXES:
            return False
        else:
            reason = "other files"
        self.pass_over(reason, name)
        return False

    def pass_over(self, reason: str, name: str) -> None:
        """Note one thing that is not used."""
        self.passed_over.setdefault(reason, []).append(name)

    def say(self, where: Path) -> None:
        """Print the line."""
        subjects = f"{self.subjects} subject{'s' * (self.subjects != 1)}"
        line = f"{where}: {self.images} image{'s' * (self.images != 1)} of {subjects}"
        if self.captions is not None:
            line += f", {self.images - self.captions} without a caption"
        reasons = []
        for reason, names in self.passed_over.items():
            more = ", ..." if len(names) > 3 else ""
            reasons.append(f"{len(names)} {reason} ({', '.join(names[:3])}{more})")
        note(f"{line}; passed over: {'; '.join(reasons)}" if reasons else line)


def images_in(folder: Path | str, tally: Tally | None = None) -> list[Path]:
    """The image files of a folder, by name, not of its subfolders.

    Raises:
        ImageError: the folder cannot be read.
    """
    tally = tally or Tally()
    return [p for p in _entries(Path(folder)) if not p.is_dir() and _is_image(p, tally)]


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
        if not path.is_dir():
            if _is_image(path, tally):
                tally.images -= 1
                tally.pass_over("beside the folders of subjects", path.name)
        elif reason := _why_no_subject(path, root):
            tally.pass_over(reason, path.name)
        else:
            try:
                images = images_in(path, tally)
            except ImageError:
                tally.pass_over("folders that cannot be read", path.name)
                continue
            if images:
                found[path.name] = images
            else:
                tally.pass_over("folders without images", path.name)
    tally.subjects = len(found)
    return found


def _why_no_subject(path: Path, root: Path) -> str | None:
    if is_system(path.name):
        return "hidden or a system's"
    if root.resolve().is_relative_to(path.resolve()):
        return "links in a circle"
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "folders whose names are no UTF-8"
    return None


def read_subject(
    name: str | None, paths: Sequence[Path], default_caption: str = PORTRAIT
) -> Subject:
    """Read one subject from its image files, each with its caption as `FolderSubjects` says.

    Its name is that of its random numbers, too; None names it after its images, so that nothing
    but them decides what is made of it.

    Raises:
        ImageError: an image or a caption cannot be read.
    """
    texts = {folder: _caption_files(folder) for folder in {path.parent for path in paths}}
    captions = (texts[path.parent].get(path.stem) for path in paths)
    photos = [read_photo(path) for path in paths]
    return Subject(
        id=name or _name_of(photos),
        photos=photos,
        captions=[default_caption if one is None else _caption(one) for one in captions],
    )


def _name_of(photos: Sequence[UInt8[Tensor, "_ _ 3"]]) -> str:
    """A name by the pixels alone, since random numbers are drawn by names."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(photo.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class FolderSubjects:
    """A source that reads `root/<subject>/<image>`.

    An image's caption is read from `<image>.txt` or `<image>.caption` beside it, else it is
    `default_caption`.
    """

    root: Path
    default_caption: str = PORTRAIT

    @cached_property
    def _folders(self) -> dict[str, list[Path]]:
        tally = Tally()
        found = subjects_below(self.root, tally)
        tally.captions = 0
        for paths in found.values():
            texts = _caption_files(paths[0].parent)
            tally.captions += sum(path.stem in texts for path in paths)
        tally.say(self.root)
        return found

    @property
    def ids(self) -> list[str]:
        """The names of the folders that hold at least one image."""
        return list(self._folders)

    def load(self, subject_id: str) -> Subject:
        """Read a subject's images and captions.

        Raises:
            ImageError: the folder, one of its images or a caption cannot be read.
        """
        if subject_id not in self._folders:
            raise ImageError(
                f"a subject must be a folder of images in {self.root}, but {subject_id!r} is "
                "none: check the name"
            )
        paths = self._folders[subject_id]
        return read_subject(subject_id, paths, self.default_caption)


def _caption_files(folder: Path) -> dict[str, Path]:
    """The captions of a folder by the names of their images, without suffix."""
    entries, found = _entries(folder), dict[str, Path]()
    for suffix in reversed(CAPTION_SUFFIXES):
        mine = (p for p in entries if p.suffix.lower() == suffix and not is_system(p.name))
        found.update({p.stem: p for p in mine if p.is_file()})
    return found


def _caption(path: Path) -> str:
    size = path.stat().st_size
    return caption_text(path.read_bytes() if size <= MAX_CAPTION_BYTES else size, str(path))


def caption_text(data: bytes | int, name: str) -> str:
    """The text of a caption.

    Args:
        data: its bytes, or their number where they are too many to be read.
        name: what messages call it.

    Raises:
        ImageError: it is no text in UTF-8, or too long.
    """
    if isinstance(data, int):
        raise ImageError(
            f"a caption may have {MAX_CAPTION_BYTES >> 10} kB, but {name} has {data >> 10}: cut it"
        )
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ImageError(
            f"a caption must be text in UTF-8, but {name} is not ({error}): save it as UTF-8"
        ) from error


def without_surrogates(names: Iterable[str], tally: Tally) -> list[str]:
    """The names that are UTF-8; the others are noted."""
    good = []
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            tally.pass_over("subjects whose names are no UTF-8", name)
        else:
            good.append(name)
    return good
