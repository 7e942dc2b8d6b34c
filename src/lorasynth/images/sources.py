"""Which kind of source a path is."""

from collections.abc import Callable
from pathlib import Path

from lorasynth.images.contract import SubjectSource
from lorasynth.images.folders import DEFAULT_CAPTION, FolderSubjects


def subjects_in(root: Path, caption: str = DEFAULT_CAPTION) -> SubjectSource:
    """The subjects in a tar or Parquet file, in a folder of such, or in a folder of folders.

    Nothing is read yet.

    Args:
        root: where they are.
        caption: of images that have none of their own.
    """
    from lorasynth.images.parquet import ParquetSubjects  # pyarrow, which few callers need
    from lorasynth.images.tars import TarSubjects

    kinds: dict[str, Callable[[Path, str], SubjectSource]] = {
        ".tar": TarSubjects,
        ".parquet": ParquetSubjects,
    }
    for suffix, kind in kinds.items():
        if root.suffix == suffix or any(root.glob(f"*{suffix}")):
            return kind(root, caption)
    return FolderSubjects(root, caption)
