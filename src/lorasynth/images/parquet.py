"""Subjects in Parquet files with one row for each image."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lorasynth.core.errors import ImageError
from lorasynth.images.contract import PORTRAIT, Subject
from lorasynth.images.files import MAX_BYTES, decode_photo
from lorasynth.images.folders import MAX_CAPTION_BYTES, Tally, caption_text

_ROWS_AT_ONCE = 32
_MAX_GROUP = 1 << 30


class _Row(NamedTuple):
    """Where one image lies."""

    file: Path
    group: int
    row: int

    def __str__(self) -> str:
        return f"row {self.row} of row group {self.group} of {self.file}"


@dataclass(frozen=True)
class ParquetSubjects:
    """A source that reads one Parquet file, or all `*.parquet` of a folder.

    Columns: `id`, the subject of the image; `image`, the bytes of an image file, or a struct
    with them in `bytes`, as data sets on the hub have; and perhaps `caption`, which is
    `default_caption` where absent or null.  Images come in the order of the rows.
    """

    root: Path
    default_caption: str = PORTRAIT

    @cached_property
    def _rows(self) -> dict[str, list[_Row]]:
        """Subject -> its rows; only the column of names is read."""
        files = sorted(self.root.glob("*.parquet")) if self.root.is_dir() else [self.root]
        found, tally = dict[str, list[_Row]](), Tally()
        for path in files:
            with _readable(path) as file:
                _require_columns(path, file.schema_arrow)
                for group in range(file.num_row_groups):
                    for row, value in enumerate(_values(path, file, group, ["id"])):
                        place = _Row(path, group, row)
                        if value["id"] is None:
                            tally.pass_over("rows without an id", str(place))
                        else:
                            found.setdefault(str(value["id"]), []).append(place)
        tally.subjects, tally.images = len(found), sum(map(len, found.values()))
        tally.say(self.root)
        return found

    @property
    def ids(self) -> list[str]:
        """The subjects, in the order in which they first come.

        Raises:
            ImageError: a file is not Parquet, or lacks a column.
        """
        return list(self._rows)

    def load(self, subject_id: str) -> Subject:
        """Read a subject's images and captions.

        Raises:
            ImageError: there is no such subject, or an image cannot be read.
        """
        if subject_id not in self._rows:
            raise ImageError(
                f"a subject must be in the column id of {self.root}, but {subject_id!r} is not: "
                "check the name"
            )
        rows = self._rows[subject_id]
        values = [_row_group(row.file, row.group)[row.row] for row in rows]
        return Subject(
            id=subject_id,
            photos=[
                self._image(value["image"], row) for value, row in zip(values, rows, strict=True)
            ],
            captions=[
                self._caption(value.get("caption"), row)
                for value, row in zip(values, rows, strict=True)
            ],
        )

    def _caption(self, value: Any, row: _Row) -> str:
        if not value:
            return self.default_caption
        if not isinstance(value, str):
            raise ImageError(
                f"a caption must be text, but {row} holds {type(value).__name__}: leave it empty"
            )
        size = len(value)
        return caption_text(value.encode() if size <= MAX_CAPTION_BYTES else size, f"that of {row}")

    def _image(self, value: Any, row: _Row) -> torch.Tensor:
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or len(data) > MAX_BYTES:
            raise ImageError(
                f"an image must be the bytes of an image file of at most {MAX_BYTES >> 20} MB, "
                f"but {row} holds {type(data).__name__}: leave the row out"
            )
        return decode_photo(io.BytesIO(data), str(row))


# A subject's rows are neighbours, so the next subjects are in the group that was read last.
@lru_cache(maxsize=2)
def _row_group(path: Path, group: int) -> list[dict[str, Any]]:
    with _readable(path) as file:
        columns = [name for name in ("image", "caption") if name in file.schema_arrow.names]
        return list(_values(path, file, group, columns))


def _values(
    path: Path, file: pq.ParquetFile, group: int, columns: list[str]
) -> Iterator[dict[str, Any]]:
    """The rows of a group; no more is in memory than `_MAX_GROUP`."""
    size = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
        size += batch.nbytes
        if size > _MAX_GROUP:  # a little file may hold one image a million times
            raise ImageError(
                f"a row group may have {_MAX_GROUP >> 20} MB, but row group {group} of {path} has "
                "more: write it with smaller row groups"
            )
        yield from batch.to_pylist()


@contextmanager
def _readable(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file, whatever reading it raises as one line."""
    try:
        if not path.is_file():
            raise OSError("it is no file")
        with pq.ParquetFile(path) as file:
            yield file
    except ImageError:
        raise
    except Exception as error:  # also of text that is no UTF-8, and of what has no Python value
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImageError(
            f"subjects may be in Parquet files, but {path} is not one ({reason}): make it again"
        ) from error


def _require_columns(path: Path, schema: pa.Schema) -> None:
    for name in ("id", "image"):
        if schema.names.count(name) != 1:
            raise ImageError(
                f"a Parquet file of subjects must have columns id and image, but {path} has "
                f"{', '.join(schema.names)}: rename them"
            )
    kind = schema.field("id").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    if not any(test(kind) for test in (*tests, pa.types.is_string_view)):
        raise ImageError(
            f"the column id must be of texts or whole numbers, but {path} has {kind}: convert it"
        )
