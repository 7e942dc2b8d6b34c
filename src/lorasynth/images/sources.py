"""Which kind of source a path or a name is."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from lorasynth.core.registry import Registry
from lorasynth.images.contract import PORTRAIT, SubjectSource
from lorasynth.images.folders import FolderSubjects

#: Makes a source of what follows its name and a colon, with images of so many pixels if it draws.
NamedSource: TypeAlias = Callable[[str, int], SubjectSource]

#: Sources by what stands before the colon, such as `avatars:200`.
SOURCES: Registry[NamedSource] = Registry(
    "source of subjects", "lorasynth.sources", "lorasynth.images.chosen"
)


def subjects_in(root: Path | str, caption: str = PORTRAIT, size: int = 512) -> SubjectSource:
    """The subjects in a tar or Parquet file, in a folder of such, in a folder of folders, or named.

    Nothing is read yet.

    Args:
        root: where they are, or the name of a source, a colon and what it takes.
        caption: of images that have none of their own.
        size: side in pixels of images that are drawn.

    Raises:
        ConfigError: a named source cannot take what follows its name.
    """
    from lorasynth.images.parquet import ParquetSubjects  # pyarrow, which few callers need
    from lorasynth.images.tars import TarSubjects

    name, colon, argument = str(root).partition(":")
    root = Path(root)
    if colon and name in SOURCES.names() and not root.exists():
        return SOURCES.get(name)(argument, size)
    kinds: dict[str, Callable[[Path, str], SubjectSource]] = {
        ".tar": TarSubjects,
        ".parquet": ParquetSubjects,
    }
    for suffix, kind in kinds.items():
        if root.suffix == suffix or any(root.glob(f"*{suffix}")):
            return kind(root, caption)
    return FolderSubjects(root, caption)
