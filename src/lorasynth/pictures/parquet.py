"""Subjects in Parquet files with one row for each picture."""

import io
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lorasynth.errors import PictureError
from lorasynth.pictures.contract import Subject
from lorasynth.pictures.files import decode_photo
from lorasynth.pictures.folders import DEFAULT_CAPTION


class _Row(NamedTuple):
    """Where one picture lies."""

    file: Path
    group: int
    row: int

    def __str__(self) -> str:
        return f"row {self.row} of row group {self.group} of {self.file}"


@dataclass(frozen=True)
class ParquetSubjects:
    """A source that reads one Parquet file, or all `*.parquet` of a folder.

    Columns: `id`, the subject of the picture; `picture`, the bytes of an image file, or a struct
    with them in `bytes`, as data sets on the hub have; and perhaps `caption`, which is
    `default_caption` where absent or null.  Pictures come in the order of the rows.
    """

    root: Path
    default_caption: str = DEFAULT_CAPTION

    @cached_property
    def _rows(self) -> dict[str, list[_Row]]:
        """Subject -> its rows; only the column of names is read."""
        files = sorted(self.root.glob("*.parquet")) if self.root.is_dir() else [self.root]
        found: dict[str, list[_Row]] = {}
        for path in files:
            try:
                file = pq.ParquetFile(path)
                _require_columns(path, file.schema_arrow.names)
                for group in range(file.num_row_groups):
                    names = file.read_row_group(group, columns=["id"])["id"].to_pylist()
                    for row, name in enumerate(names):
                        found.setdefault(str(name), []).append(_Row(path, group, row))
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(path, error) from error
        return found

    @property
    def ids(self) -> list[str]:
        """The subjects, in the order in which they first come.

        Raises:
            PictureError: a file is not Parquet, or lacks a column.
        """
        return list(self._rows)

    def load(self, subject_id: str) -> Subject:
        """Read a subject's pictures and captions.

        Raises:
            PictureError: there is no such subject, or a picture cannot be read.
        """
        if subject_id not in self._rows:
            raise PictureError(
                f"a subject must be in the column id of {self.root}, but {subject_id!r} is not: "
                "check the name"
            )
        rows = self._rows[subject_id]
        values = [_row_group(row.file, row.group)[row.row] for row in rows]
        return Subject(
            id=subject_id,
            photos=[
                self._picture(value["picture"], row)
                for value, row in zip(values, rows, strict=True)
            ],
            captions=[value.get("caption") or self.default_caption for value in values],
        )

    def _picture(self, value: Any, row: _Row) -> torch.Tensor:
        data = value["bytes"] if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise PictureError(
                f"a picture must be the bytes of an image file, but {row} holds "
                f"{type(data).__name__}: leave the row out"
            )
        return decode_photo(io.BytesIO(data), str(row))


# A subject's rows are neighbours, so the next subjects are in the group that was read last.
@lru_cache(maxsize=2)
def _row_group(path: Path, group: int) -> list[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
        columns = [name for name in ("picture", "caption") if name in file.schema_arrow.names]
        rows: list[dict[str, Any]] = file.read_row_group(group, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    return rows


def _require_columns(path: Path, names: list[str]) -> None:
    for name in ("id", "picture"):
        if name not in names:
            raise PictureError(
                f"a Parquet file of subjects must have columns id and picture, but {path} has "
                f"{', '.join(names)}: rename them"
            )


def _unreadable(path: Path, error: Exception) -> PictureError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return PictureError(
        f"subjects may be in Parquet files, but {path} is not one ({reason}): make it again"
    )
