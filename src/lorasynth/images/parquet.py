"""Subjects in Parquet files with one row for each image."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import override

from lorasynth.core.errors import ImageError
from lorasynth.images.files import MAX_BYTES, decode_photo
from lorasynth.images.indexed import MAX_CAPTION_BYTES, Indexed, Shown, Tally, caption_text

_ROWS_AT_ONCE = 32
_MAX_GROUP = 1 << 30


class _Row(NamedTuple):
    """Where one image lies."""

    file: Path
    group: int
    row: int

    @property
    def values(self) -> dict[str, Any]:
        """Its image, and its caption if there is that column."""
        return _row_group(self.file, self.group)[self.row]

    def __str__(self) -> str:
        return f"row {self.row} of row group {self.group} of {self.file}"


class ParquetSubjects(Indexed):
    """A source that reads one Parquet file, or all `*.parquet` of a folder.

    Columns: `id`, the subject of the image; `image`, the bytes of an image file, or a struct
    with them in `bytes`, as data sets on the hub have; and perhaps `caption`, which is
    `default_caption` where absent or null, and the subject's `split`.  Subjects and images come in
    the order of the rows.
    """

    told = "be in the column id of", "is not"

    @override
    def _index(self, tally: Tally) -> dict[str, list[Shown]]:
        """Only the columns of names and splits are read."""
        files = sorted(self.root.glob("*.parquet")) if self.root.is_dir() else [self.root]
        found = dict[str, list[Shown]]()
        for path in files:
            with _readable(path) as file:
                _require_columns(path, file.schema_arrow)
                names = [name for name in ("id", "split") if name in file.schema_arrow.names]
                for group in range(file.num_row_groups):
                    for row, value in enumerate(_values(path, file, group, names)):
                        place = _Row(path, group, row)
                        if value["id"] is None:
                            tally.pass_over("rows without an id", str(place))
                        else:
                            found.setdefault(str(value["id"]), []).append(Shown(place, place))
                            if value.get("split") is not None:
                                self.splits[str(value["id"])] = str(value["split"])
        return found

    @override
    def _photos(self, places: Sequence[_Row]) -> list[UInt8[Tensor, "h w 3"]]:
        photos = []
        for row in places:
            value = row.values["image"]
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes) or len(data) > MAX_BYTES:
                raise ImageError(
                    "an image must be the bytes of an image file of at most "
                    f"{MAX_BYTES >> 20} MB, but {row} holds {type(data).__name__}: leave the row "
                    "out"
                )
            photos.append(decode_photo(io.BytesIO(data), str(row)))
        return photos

    @override
    def _caption(self, place: _Row) -> str:
        value = place.values.get("caption")
        if not value:
            return self.default_caption
        if not isinstance(value, str):
            raise ImageError(
                f"a caption must be text, but {place} holds {type(value).__name__}: leave it empty"
            )
        short = len(value) <= MAX_CAPTION_BYTES
        return caption_text(value.encode() if short else len(value), f"that of {place}")


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
