"""Write files and folders so that a reader sees the whole of one or none of it.

Each function writes to a temporary folder beside the target, flushes to disk, and renames.  A
process killed at any moment leaves the old content or the new, plus at most a folder whose name
starts with `TEMPORARY_PREFIX`, which the next writer in its place deletes.  (Where the system
cannot swap two folders in one step, a kill between two renames leaves the old folder under a
temporary name.)
"""

import ctypes
import fnmatch
import hashlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError

from lorasynth.core.errors import LorasynthError

TEMPORARY_PREFIX = ".tmp-"

#: Bytes of a name to which a suffix and a temporary's token may still be added (255 are allowed).
_LONGEST_NAME = 200

#: Pattern of the token in a temporary name: 3 digits of the machine, 6 of the process, 3 more.
_TOKEN = 12 * "[0-9a-f]"
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:3]
_numbers = itertools.count()
#: Folders in which what dead processes left was deleted.
_swept: set[Path] = set()

#: What the user takes from a new file's permissions; it can only be read by setting another.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename survives a power cut (a no-op on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _finish_file(path: Path) -> None:
    path.chmod(0o666 & ~_UMASK)  # safetensors writes files for their owner alone
    _sync_file(path)


def _temporary(target: Path) -> Path:
    token = f"{_MACHINE}{os.getpid():06x}{next(_numbers) % 4096:03x}"
    return target.with_name(f"{TEMPORARY_PREFIX}{token}-{target.name}")


def make_parent(target: Path, run: Path | None = None) -> None:
    """Make the folder that `target` will be in; long work calls it before it begins.

    Args:
        target: an output.
        run: folder of checkpoints, which come and go; the output must be apart from it.

    Raises:
        LorasynthError: the folder cannot be created or written, or output and checkpoints share it.
    """
    if target.name in ("", ".."):
        raise LorasynthError(f"an output must have a name of its own, but got {target}: add one")
    if run is not None:
        work, out = run.resolve(), target.resolve()
        if out.is_relative_to(work) or work.is_relative_to(out):
            raise LorasynthError(
                f"an output and the folder of checkpoints must be apart, but got {target} and "
                f"{run}: choose another output path, or another --run"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(f"no write permission on {target.parent}")
    except OSError as error:
        raise LorasynthError(
            f"an output must be in a writable folder, but {target.parent} is not ({error}): "
            "choose another output path"
        ) from error


def as_file_name(text: str) -> str:
    """Any text as the name of one file on any system; plain names stay, others never collide.

    What has a meaning in a path, acts on a terminal or is hidden is written as %XX, and what would
    be too long ends with a hash.
    """

    def plain(index: int, c: str) -> bool:
        edge = (index == 0 and c == ".") or (index == len(text) - 1 and c in ". ")
        return c.isprintable() and c not in '%/\\:*?"<>|' and not edge

    name = "".join(
        c if plain(i, c) else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogateescape"))
        for i, c in enumerate(text)
    )
    if name and len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{name.encode()[: _LONGEST_NAME - 17].decode(errors='ignore')}%{digest}"


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder, which need not exist; nobody is writing now."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}{_TOKEN}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Delete what processes of this machine that are no more left in a folder; once is enough."""
    if folder in _swept:
        return
    _swept.add(folder)
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}{_MACHINE}{9 * '[0-9a-f]'}-*"):
        owner = int(leftover.name.removeprefix(TEMPORARY_PREFIX)[3:9], 16)
        if owner != os.getpid() and not psutil.pid_exists(owner):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def atomic_file(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes `target`, on any error it is deleted.

    The temporary file has a folder of its own, since some writers (safetensors) make further files
    beside theirs, which a kill would leave.

    Raises:
        LorasynthError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(target)
    make_parent(target)
    _sweep(target.parent)
    folder = _temporary(target)
    temporary = folder / target.name
    try:
        folder.mkdir()
        yield temporary
        _finish_file(temporary)
        temporary.replace(target)
        sync_directory(target.parent)
    except (OSError, SafetensorError) as error:
        raise LorasynthError(f"could not write {target}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_directory(target: Path | str, also: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes `target`, replacing an earlier output there.

    Args:
        target: the folder; a link to one stays a link.
        also: names of what an earlier output may hold beside files of the new one's names.

    Raises:
        LorasynthError: the folder cannot be created or written, the disk is full, or something
            that is no earlier output has the name.
    """
    target = Path(target)
    make_parent(target)
    if target.is_symlink():
        target = target.resolve()
    _sweep(target.parent)
    temporary = _temporary(target)
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _finish_file(path)
            else:
                sync_directory(path)
        sync_directory(temporary)
        if target.exists():
            require_replaceable(target, itertools.chain(_files_below(temporary), also))
            _exchange(temporary, target)
        else:
            temporary.rename(target)
        sync_directory(target.parent)
    except (OSError, SafetensorError) as error:
        raise LorasynthError(f"could not write {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_replaceable(old: Path, names: Iterable[str]) -> None:
    """Refuse to replace a folder that holds what no earlier output of its kind does.

    Args:
        old: what is at the path of an output.
        names: patterns of all files that such an output may have, as paths below it.

    Raises:
        LorasynthError: names the first that is in the way.
    """
    known = list(names)
    if not old.is_dir():
        strange = [old] if old.exists() else []
    else:
        strange = [
            old / name
            for name in _files_below(old)
            if name not in known and not any(fnmatch.fnmatchcase(name, one) for one in known)
        ]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise LorasynthError(
            f"an output folder replaces nothing but an earlier one of its kind, but {strange[0]}"
            f"{more} is in the way: choose another output path, or move it elsewhere"
        )


def _files_below(folder: Path) -> list[str]:
    """Paths of all below a folder that is no folder itself, and of empty folders."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    )


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders: in one step where the system can, else by renaming."""
    swap = None if os.name == "nt" else getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    if swap and swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    retired = _temporary(second)
    second.rename(retired)
    try:
        first.rename(second)
    except OSError:
        retired.rename(second)
        raise
    retired.rename(first)


def write_bytes(target: Path | str, data: bytes) -> None:
    """Atomically replace `target` by `data`."""
    with atomic_file(target) as temporary:
        temporary.write_bytes(data)


def write_text(target: Path | str, text: str) -> None:
    """Atomically replace `target` by `text` in UTF-8."""
    write_bytes(target, text.encode())


def write_json(target: Path | str, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Atomically replace `target` by indented JSON with a final newline."""
    write_text(target, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
