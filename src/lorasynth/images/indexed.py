"""Sources that are looked through once: which files count, and what is said of the others."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from lorasynth.core.errors import ImageError, installing
from lorasynth.core.progress import note
from lorasynth.images.contract import PORTRAIT, Subject
from lorasynth.images.files import SUFFIXES, readable_formats

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
            reason = f"HEIC, which needs {installing('heic')}"
        elif suffix in SUFFIXES:
            self.images += 1
            return True
        elif suffix in CAPTION_SUFFIXES:
            return False
        else:
            reason = "other files"
        self.pass_over(reason, name)
        return False

    def pass_over(self, reason: str, name: str) -> None:
        """Note one thing that is not used."""
        self.passed_over.setdefault(reason, []).append(name)

    def is_utf8(self, name: str) -> bool:
        """Whether a subject can have that name; if not, it is noted."""
        try:
            name.encode()
        except UnicodeEncodeError:
            self.pass_over("subjects whose names are no UTF-8", name)
            return False
        return True

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


class Shown(NamedTuple):
    """Where an image of a subject lies, and its caption; None where it has none."""

    photo: Any
    caption: Any


class Indexed(ABC):
    """A source that is looked through when it is first asked; images are read when it loads.

    Args:
        root: a file or folder.
        default_caption: of images that have none of their own.
    """

    #: What a subject must be in it, and how messages say that one is not.
    told: ClassVar[tuple[str, str]]

    def __init__(self, root: Path, default_caption: str = PORTRAIT) -> None:
        self.root = root
        self.default_caption = default_caption
        #: Subject -> its split, of those of whom it is stated; known once `ids` are.
        self.splits: dict[str, str] = {}

    @abstractmethod
    def _index(self, tally: Tally) -> dict[str, list[Shown]]:
        """The subjects, each with one image or more, in a stable order."""

    @abstractmethod
    def _photos(self, places: Sequence[Any]) -> Sequence[UInt8[Tensor, "h w 3"]]: ...

    @abstractmethod
    def _caption(self, place: Any) -> str: ...

    @cached_property
    def _subjects(self) -> dict[str, list[Shown]]:
        tally = Tally()
        found = self._index(tally)
        tally.subjects, tally.images = len(found), sum(map(len, found.values()))
        tally.say(self.root)
        return found

    @property
    def ids(self) -> list[str]:
        """The subjects that have at least one image.

        Raises:
            ImageError: it cannot be looked through.
        """
        return list(self._subjects)

    def stamp(self, ids: Sequence[str]) -> str:
        """What changes with any file that the images and captions of these subjects lie in."""
        shown = [(name, self.default_caption, self._subjects[name]) for name in ids]
        files = {_file_of(place) for *_, some in shown for one in some for place in one if place}
        stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
        return hashlib.sha256(repr([shown, stamps]).encode()).hexdigest()

    def load(self, subject_id: str) -> Subject:
        """Read a subject's images and captions.

        Raises:
            ImageError: there is no such subject, or an image or caption cannot be read.
        """
        if subject_id not in self._subjects:
            rule, fault = self.told
            raise ImageError(
                f"a subject must {rule} {self.root}, but {subject_id!r} {fault}: check the name"
            )
        shown = self._subjects[subject_id]
        return Subject(
            id=subject_id,
            photos=self._photos([one.photo for one in shown]),
            captions=[
                self.default_caption if one.caption is None else self._caption(one.caption)
                for one in shown
            ],
        )


def caption_text(data: bytes | int, name: object) -> str:
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


def _file_of(place: Path | tuple[Any, ...]) -> Path:
    """The file that a place is, or the first thing that a place in a larger file says."""
    return place if isinstance(place, Path) else Path(place[0])
