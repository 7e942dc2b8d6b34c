"""Subjects in tar files, named as webdataset does: `<subject>.<n>.jpg`, its caption `.txt`.

The files are never unpacked: their headers say where each image begins, and it is read there.
The headers are walked here, since tarfile reads what they state whatever its size.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import override

from lorasynth.core.errors import ImageError
from lorasynth.images.files import MAX_BYTES, decode_photo
from lorasynth.images.indexed import (
    CAPTION_SUFFIXES,
    MAX_CAPTION_BYTES,
    Indexed,
    Shown,
    Tally,
    caption_text,
)

_BLOCK = tarfile.BLOCKSIZE
#: Bytes of a name that has a header of its own; more is refused.
_LONGEST_NAME = 16 << 10


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


class TarSubjects(Indexed):
    """A source that reads the images in one tar file, or in all `*.tar` of a folder.

    Subjects are sorted.  A subject's images come in the order of their names, and may be spread
    over several tars.  An image without a caption has `default_caption`.
    """

    told = "have files <subject>.<number>.jpg in", "has none"

    @override
    def _index(self, tally: Tally) -> dict[str, list[Shown]]:
        tars = sorted(self.root.glob("*.tar")) if self.root.is_dir() else [self.root]
        images, captions = dict[str, dict[str, _Member]](), dict[tuple[str, str], _Member]()
        for member in (member for tar in tars for member in _members(tar)):
            stem, _, suffix = member.name.rpartition(".")
            subject, _, number = stem.rpartition(".")
            if not subject:
                tally.pass_over("files not named <subject>.<number>", member.name)
            elif tally.sort(member.name):
                other = images.setdefault(subject, {}).setdefault(member.name, member)
                if other.tar != member.tar:
                    raise ImageError(
                        f"an image must be in one tar, but {member.name} is in {other.tar} and in "
                        f"{member.tar}: rename one"
                    )
                images[subject][member.name] = member
            elif f".{suffix.lower()}" in CAPTION_SUFFIXES:
                captions[subject, number] = member
        found = {
            name: [Shown(one, captions.get((name, _number(n)))) for n, one in sorted(some.items())]
            for name, some in sorted(images.items())
            if tally.is_utf8(name)
        }
        tally.captions = sum(one.caption is not None for many in found.values() for one in many)
        return found

    @override
    def _photos(self, places: Sequence[_Member]) -> list[UInt8[Tensor, "h w 3"]]:
        for member in places:
            if member.size > MAX_BYTES:
                raise ImageError(
                    f"an image's file may have {MAX_BYTES >> 20} MB, but {member} has "
                    f"{member.size >> 20}: save it as JPEG or PNG"
                )
        return [decode_photo(io.BytesIO(member.read()), str(member)) for member in places]

    @override
    def _caption(self, place: _Member) -> str:
        small = place.size <= MAX_CAPTION_BYTES
        return caption_text(place.read() if small else place.size, str(place))


def _number(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _members(path: Path) -> Iterator[_Member]:
    """The plain files of a tar, in its order."""
    try:
        if not path.is_file():
            raise tarfile.ReadError("it is no file")
        size = path.stat().st_size
        with path.open("rb") as file:
            yield from _walk(file, path, size)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise ImageError(
            f"subjects may be in tar files, whole and not compressed, but {path} is not one "
            f"({error}): unpack or make it again"
        ) from error


def _walk(file: BinaryIO, path: Path, size: int) -> Iterator[_Member]:
    place, name, sparse = 0, None, False
    while block := file.read(_BLOCK):
        if block == bytes(_BLOCK):
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("it ends without its two empty blocks")
            return
        entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        start = place + _BLOCK
        if not 0 <= entry.size <= size - start:
            raise tarfile.ReadError(f"it is cut, or its header at byte {place} is damaged")
        more = entry.type == tarfile.GNUTYPE_SPARSE and block[482]
        while more:  # the rest of a list of holes
            more, start = file.read(_BLOCK)[504:505] == b"\1", start + _BLOCK
        place = start + -(-entry.size // _BLOCK) * _BLOCK
        if entry.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if entry.size > _LONGEST_NAME:
                raise tarfile.ReadError(f"its header at byte {start - _BLOCK} is too long")
            stated, sparse = _long_name(entry.type, file.read(entry.size))
            name = stated or name
        elif entry.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            if entry.isreg() and entry.type != tarfile.GNUTYPE_SPARSE and not sparse:
                yield _Member(path, (name or entry.name).removeprefix("./"), start, entry.size)
            name, sparse = None, False
        file.seek(place)
    raise tarfile.ReadError("it ends without its two empty blocks")


def _long_name(kind: bytes, data: bytes) -> tuple[str | None, bool]:
    """The name that a header states for the next file, and whether that has holes."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.split(b"\0")[0].decode("utf-8", "surrogateescape"), False
    name, sparse = None, False
    while data.strip(b"\0"):
        length = int(data.split(b" ", 1)[0][:9])
        key, equals, value = data[:length].partition(b" ")[2].partition(b"=")
        if not equals or not 0 < length <= len(data) or not value.endswith(b"\n"):
            raise ValueError("one of its extended headers is damaged")
        if key == b"path":
            name = value[:-1].decode("utf-8", "surrogateescape")
        elif key == b"size":
            raise ValueError("one of its files has more than 8 GB")
        sparse = sparse or key.startswith(b"GNU.sparse")
        data = data[length:]
    return name, sparse
