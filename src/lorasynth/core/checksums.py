"""A record of what a folder's files should hold, so that a changed byte is found on loading."""

import glob
import hashlib
from collections.abc import Mapping
from pathlib import Path

from lorasynth.core.atomic import TEMPORARY_PREFIX, write_json
from lorasynth.core.config import read_json
from lorasynth.core.errors import BundleError, ConfigError

FILE = "checksums.json"


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[Path]:
    """All files below a folder that a record covers, in a stable order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != FILE
        and not any(part.startswith(TEMPORARY_PREFIX) for part in path.relative_to(folder).parts)
    )


def record(folder: Path) -> None:
    """Write the hashes of all files below `folder` into it."""
    write_json(
        folder / FILE,
        {path.relative_to(folder).as_posix(): file_hash(path) for path in files_in(folder)},
    )


def names(folder: Path | str) -> list[str]:
    """The files that a folder's record states, and the record; none where there is no record."""
    try:
        return [FILE, *map(glob.escape, read_json(Path(folder) / FILE))]
    except ConfigError:
        return []


def verify(folder: Path) -> None:
    """Compare all files below `folder` with its record.

    Raises:
        BundleError: the record or a file is missing, or a file has changed.
    """
    try:
        stated = read_json(folder / FILE)
    except ConfigError as error:
        raise BundleError(
            f"{folder} must be a folder that lorasynth saved, with {FILE} in it, but is not: "
            f"{error}"
        ) from error
    compare(folder, stated)


def compare(folder: Path, stated: Mapping[str, str]) -> None:
    """Compare files below `folder` with the hashes stated by name.

    Raises:
        BundleError: a file is missing or has changed.
    """
    for name, expected in stated.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} must hold {name}, but does not: fetch or make it again")
        if file_hash(path) != expected:
            raise BundleError(
                f"{path} must be as it was saved, but its contents have changed: fetch or make it "
                "again"
            )
