"""Facts about a library's subjects that are added later: a table beside the shards, by their ids.

So subjects of any origin have attributes to edit by and to condition on, and splits.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa
from pyarrow import csv
from pyarrow import parquet as pq

from lorasynth.core.atomic import atomic_file
from lorasynth.core.errors import LibraryError, reason_of

FILE = "annotations.parquet"
_ID = "id"


def read_facts(path: Path) -> pa.Table:
    """A table of facts from CSV (with a header) or Parquet: `id`, and a column for each fact.

    Ids are text even where they look like numbers.

    Raises:
        LibraryError: the file cannot be read, has no column `id`, or an id occurs twice.
    """
    try:
        if not path.is_file():
            raise OSError("it is no file")
        text = csv.ConvertOptions(column_types={_ID: pa.string()}, strings_can_be_null=True)
        parquet = path.suffix.lower() == ".parquet"
        table = pq.read_table(path) if parquet else csv.read_csv(path, convert_options=text)
    except (OSError, pa.ArrowException) as error:
        reason = reason_of(error)
        raise LibraryError(
            f"facts must be a CSV or Parquet file, but {path} is not readable as one ({reason})"
        ) from error
    names = table.column_names
    if names.count(_ID) != 1 or len(set(names)) < len(names) or len(names) < 2:
        raise LibraryError(
            f"facts must have one column id and others of different names, but {path} has "
            f"{', '.join(names)}"
        )
    table = table.set_column(names.index(_ID), _ID, table[_ID].cast(pa.string()))
    ids = table[_ID].to_pylist()
    twice = next((name for name, times in Counter(ids).items() if times > 1), None)
    if None in ids or twice is not None:
        raise LibraryError(
            f"each row of facts needs an id of its own, but {path} has {twice!r} twice"
        )
    return table


def write_facts(folder: Path, facts: pa.Table, ids: list[str], taken: list[str]) -> pa.Table:
    """Add facts to those of a library; a column of the same name is replaced.

    Args:
        folder: of the library.
        facts: as `read_facts` gives them.
        ids: of the library's subjects.
        taken: columns that its own table has, which cannot be replaced.

    Returns:
        All facts that the library has now.

    Raises:
        LibraryError: an id is no subject of the library, or a column is taken.
    """
    if unknown := sorted(set(facts[_ID].to_pylist()) - set(ids)):
        raise LibraryError(
            f"facts must be about subjects of the library, but {len(unknown)} ids are not in "
            f"{folder}, the first {unknown[0]!r}: check the column id"
        )
    if own := sorted((set(facts.column_names) & set(taken)) - {_ID}):
        raise LibraryError(
            f"facts need names of their own, but {folder} has a column {own[0]!r} already"
        )
    merged = with_facts(pa.table({_ID: ids}), facts)
    for name in (stored := stored_facts(folder)).column_names:
        if name not in merged.column_names:
            merged = merged.append_column(name, with_facts(pa.table({_ID: ids}), stored)[name])
    with atomic_file(folder / FILE) as temporary:
        pq.write_table(merged, temporary)
    return merged


def stored_facts(folder: Path) -> pa.Table:
    """The facts that were added to a library; only its ids where there are none.

    Raises:
        LibraryError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return pa.table({_ID: pa.array([], pa.string())})
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise LibraryError(f"{path} must be a table, but is not: annotate again") from error


def with_facts(table: pa.Table, facts: pa.Table) -> pa.Table:
    """A table of subjects with columns of facts; missing where there are none of a subject."""
    rows = {name: row for row, name in enumerate(facts[_ID].to_pylist())}
    places = pa.array([rows.get(name) for name in table[_ID].to_pylist()], pa.int64())
    for name in facts.column_names:
        if name != _ID:
            table = table.append_column(name, facts[name].take(places))
    return table
