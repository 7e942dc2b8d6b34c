"""A library: a folder of shards with the canonical vectors and raw factors of many adapters.

    library.json            layout, gauge, type of numbers, origin
    reference.safetensors   what the gauge aligns with, frozen by the first adapter
    shards/000000/ ...      see `shard`
    columns/<name>.safetensors

Shards appear by one rename and never change, so a process killed at any moment leaves every
complete shard, and readers need no lock.  Writers take turns by a file lock.
"""

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorasynth.adapter import (
    GAUGES,
    Factors,
    Layout,
    canonicalise,
    choose_reference,
    concatenate,
    count,
    map_factors,
    require_finite,
)
from lorasynth.core.atomic import atomic_file, make_parent, remove_leftovers, write_json
from lorasynth.core.config import from_dict, read_json, to_dict
from lorasynth.core.errors import ConfigError, LibraryError
from lorasynth.core.progress import note, progress
from lorasynth.core.weights import require_small_header
from lorasynth.library.annotations import stored_facts, with_facts, write_facts
from lorasynth.library.columns import hash_lines, hash_numbers, read_column, write_column
from lorasynth.library.shard import Shard, write_shard
from lorasynth.library.vectors import Stored

#: Version of the folder's form.
VERSION = 1

_INFO = "library.json"
_REFERENCE = "reference.safetensors"
_LOCK = ".lock"
_SHARD = re.compile("[0-9]{6,}")


@dataclass(frozen=True, kw_only=True)
class LibraryInfo:
    """What `library.json` says.

    Attributes:
        layout: JSON form of the layout of all vectors.
        gauge: of the canonical vectors.
        dtype: type in which vectors are stored; raw factors keep their own.
        base_fingerprint: of the base model that the adapters change.
        recipe: how the adapters were made.
        reference_hash: SHA-256 of the reference vector; None until there is one.
        shards: number of shards that were written; 0 where an early release did not count them.
        version: of the folder's form.
    """

    layout: dict[str, Any]
    gauge: str
    dtype: Stored = "float32"
    base_fingerprint: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    reference_hash: str | None = None
    shards: int = 0
    version: int = VERSION


@dataclass(frozen=True)
class LibraryReport:
    """What `Library.check` found.

    Attributes:
        shards: how many there are.
        adapters: in intact shards.
        damages: one line for each; empty if the library is intact.
    """

    shards: int
    adapters: int
    damages: tuple[str, ...]


class Library:
    """N adapters of one layout on disk, made by `create` or `open`; or some of them, by `select`.

    A selection is read as a library is, and cannot be written.

    Attributes:
        path: of the folder.
        info: what `library.json` says.
        layout: of all adapters.
        whole: the library that this is a selection of; itself, if it is none.
    """

    def __init__(self, path: Path, info: LibraryInfo) -> None:
        self.path = path
        self.info = info
        self.layout = Layout.from_dict(info.layout)
        self.whole = self
        self._lock = filelock.FileLock(path / _LOCK, timeout=0)
        self._load_shards()

    @classmethod
    def create(
        cls,
        path: Path | str,
        layout: Layout,
        base_fingerprint: str = "",
        recipe: Mapping[str, Any] | None = None,
        *,
        gauge: str = "procrustes",
        dtype: Stored = "float32",
    ) -> "Library":
        """Make an empty library.

        Args:
            path: a folder that is not yet a library.
            layout: modules, widths and ranks of all its adapters.
            base_fingerprint: of the base model that they change.
            recipe: how they are made, as JSON values.
            gauge: of the canonical vectors; they are aligned with the first adapter appended, or
                with what `freeze` is given before.
            dtype: type in which vectors are stored.

        Raises:
            LibraryError: there is a library already.
            ConfigError: no such gauge.
        """
        path = Path(path)
        GAUGES.get(gauge)
        make_parent(path / _INFO)
        info = LibraryInfo(
            layout=layout.to_dict(),
            gauge=gauge,
            dtype=dtype,
            base_fingerprint=base_fingerprint,
            recipe=dict(recipe or {}),
        )
        # Of two that create one, the second finds the first's.
        with _taken(filelock.FileLock(path / _LOCK, timeout=0), path):
            if Library.is_at(path):
                raise LibraryError(
                    f"a new library needs a path of its own, but {path} is a library"
                )
            write_json(path / _INFO, to_dict(info))
        return cls(path, info)

    @staticmethod
    def is_at(path: Path | str) -> bool:
        """Whether there is a library at a path."""
        return (Path(path) / _INFO).is_file()

    @classmethod
    def open(cls, path: Path | str) -> "Library":
        """Open a library for reading and appending.

        Raises:
            LibraryError: `path` is not a library, or of another version.
            LayoutError: its layout contradicts itself.
        """
        return cls(Path(path), _read_info(Path(path)))

    def refresh(self) -> None:
        """See what other processes have appended since."""
        self.info = _read_info(self.path)
        self._load_shards()

    # Selecting ----------------------------------------------------------------------------------

    def select(self, rows: Sequence[int] | NDArray[np.integer]) -> "Library":
        """Some rows, such as those of one split, in the order asked for.

        Raises:
            LibraryError: a row does not exist.
        """
        wanted, chosen = np.asarray(rows, dtype=np.int64), copy.copy(self)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise LibraryError(
                f"rows must be from 0 to {len(self) - 1}, but got {wanted.min()} to {wanted.max()}"
            )
        chosen.rows = self.rows[wanted]
        return chosen

    def where(self, column: str, value: object) -> "Library":
        """The rows whose subjects have `value` in a column of the table.

        Raises:
            LibraryError: the table has no such column.
        """
        table = self.table
        if column not in table.column_names:
            raise LibraryError(
                f"a column must be one of {', '.join(table.column_names)}, but got {column!r}"
            )
        return self.select(
            [i for i, found in enumerate(table[column].to_pylist()) if found == value]
        )

    def training(self, split: str = "train", *, quiet: bool = False) -> "Library":
        """The rows that may be learned from, so that those held out stay unseen.

        Args:
            split: of the table's column `split`; "all" for every row.
            quiet: do not say that the table has no such column; all rows are given then.

        Raises:
            LibraryError: no row is in that split.
        """
        if split == "all":
            return self
        if "split" not in self.table.column_names:
            if not quiet:
                note(
                    f"{self.path} has no column 'split', so nothing is held out: all {len(self)} "
                    "adapters are learned from."
                )
            return self
        chosen = self.where("split", split)
        if not len(chosen):
            found = sorted({str(one) for one in self.table["split"].to_pylist()})
            raise LibraryError(
                f"--split must be all or one of {', '.join(found)}, but {self.path} has no adapter "
                f"in {split!r}"
            )
        return chosen

    def held_out(self) -> "Library | None":
        """The rows of the split "validation", by which a training is stopped; None: too few."""
        if "split" not in self.table.column_names:
            return None
        rows = self.where("split", "validation")
        return rows if len(rows) > 1 else None

    # Reading ------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Row numbers in the whole library."""
        return np.arange(self._starts[-1])

    def __len__(self) -> int:
        """Number of adapters N."""
        return len(self.rows)

    @property
    def width(self) -> int:
        """Length D of a vector."""
        return self.layout.size

    @property
    def ids(self) -> list[str]:
        """Subject ids in row order."""
        ids = [str(name) for shard in self.shards for name in shard.subjects["id"].to_pylist()]
        return ids if self.whole is self else [ids[row] for row in self.rows]

    @property
    def table(self) -> pa.Table:
        """The table of subjects: `id`, whatever columns were given, and what was annotated."""
        table = with_facts(self.own_table, stored_facts(self.path))
        return table if self.whole is self else table.take(self.rows)

    @property
    def own_table(self) -> pa.Table:
        """What came with the adapters of the whole library."""
        if not self.shards:
            return pa.table({"id": pa.array([], pa.string())})
        tables = [shard.subjects for shard in self.shards]
        return pa.concat_tables(tables, promote_options="permissive")

    @property
    def fingerprint(self) -> str:
        """Identifies the vectors and their order: a hash of the shards' own checksums."""
        found = hash_lines([shard.fingerprint for shard in self.shards])
        if self.whole is self:
            return found
        return hash_lines([found, *map(str, self.rows.tolist())])

    def read_block(self, row: int, column: int, out: Float32[Tensor, "n w"]) -> None:
        """Fill `out` with the block of canonical vectors that begins at (row, column).

        What is read is not mapped, so it takes no memory beside `out`.

        Args:
            row: first row.
            column: first column.
            out: n x w numbers; its shape says how much is read.

        Raises:
            LibraryError: the block reaches beyond the vectors, or a shard is damaged.
        """
        end = row + len(out)
        if not 0 <= row <= end <= len(self):
            raise LibraryError(f"rows must be from 0 to {len(self) - 1}, but got {row} to {end}")
        rows = self.rows[row:end]
        homes = np.searchsorted(self._starts, rows, side="right") - 1
        apart = (np.diff(rows) != 1) | (np.diff(homes) != 0)
        for run in np.split(np.arange(len(rows)), np.flatnonzero(apart) + 1):
            if len(run):  # rows that follow one another in one shard
                first, home = run[0], homes[run[0]]
                part = out[first : run[-1] + 1]
                start = int(rows[first] - self._starts[home])
                self.shards[home].vectors.read_block(start, column, part)

    def all_vectors(self) -> Float[Tensor, "n D"]:
        """All canonical vectors, in float32."""
        result = torch.empty(len(self), self.width)
        self.read_block(0, 0, result)
        return result

    def factors(self, rows: Sequence[int] | NDArray[np.integer] | None = None) -> Factors:
        """Raw factors of some rows, or of all, stacked, in the order asked for.

        Raises:
            LibraryError: there are no rows to stack, or a row does not exist.
        """
        if rows is not None:
            return self.select(rows).factors()
        if not len(self):
            raise LibraryError("factors need at least one row, but none was given")
        homes = np.searchsorted(self._starts, self.rows, side="right") - 1
        order = np.argsort(homes, kind="stable")
        found = [
            self.shards[home].factors((self.rows[homes == home] - self._starts[home]).tolist())
            for home in np.unique(homes)
        ]
        back = torch.from_numpy(np.argsort(order))
        return map_factors(lambda tensor: tensor[back], concatenate(found))

    def column(self, name: str) -> Tensor:
        """The array attached as `name`, aligned with the rows.

        Raises:
            LibraryError: there is none, it is damaged, or adapters were appended since.
        """
        values = read_column(self._column_path(name), self.whole.ids)
        return values if self.whole is self else values[torch.from_numpy(self.rows)]

    @property
    def columns(self) -> list[str]:
        """Names of the attached arrays."""
        return sorted(path.stem for path in (self.path / "columns").glob("[!.]*"))

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers of subjects.

        Raises:
            LibraryError: names the first unknown subject.
        """
        known = {name: row for row, name in enumerate(self.ids)}
        for name in ids:
            if name not in known:
                raise LibraryError(f"a subject must be in the library, but {name!r} is not")
        return np.array([known[name] for name in ids], dtype=np.int64)

    @property
    def reference(self) -> Factors | None:
        """What the gauge aligns with; None as long as there is none.

        Raises:
            LibraryError: it is missing, damaged, or not the one that the library began with.
        """
        if self.info.reference_hash is None:
            return None
        path = self.path / _REFERENCE
        try:
            require_small_header(path)
            vector = load_file(path)["vector"]
        except (OSError, SafetensorError, KeyError) as error:
            raise LibraryError(
                f"{path} must be readable, but is not ({error}): restore it from a copy"
            ) from error
        if hash_numbers(vector) != self.info.reference_hash:
            raise LibraryError(
                f"{path} has changed since the library began: restore it from a copy"
            )
        return self.layout.unflatten(vector)

    # Checking -----------------------------------------------------------------------------------

    def require_intact(self) -> None:
        """Compare the vectors with their checksums; what learns from a library does it first.

        Raises:
            LibraryError: names the first shard that has changed since it was written or is missing,
                or the first subject that is there twice.
        """
        for line in self._gaps():
            raise LibraryError(f"a library must be whole, but {line} (`lorasynth library check`)")
        used = np.unique(np.searchsorted(self._starts, self.rows, side="right") - 1)
        with progress("checksums", len(used), shown=len(used) > 16) as advance:
            for home in used:
                self.shards[home].require_intact()
                advance()

    def _gaps(self) -> Iterator[str]:
        """Shards that are missing, and ids that are in several places, one line each."""
        present = {int(shard.path.name): shard for shard in self.shards}
        missing = max(self.info.shards, 1 + max(present, default=-1)) - len(present)
        if missing:
            first = next(number for number in itertools.count() if number not in present)
            more = f" and {missing - 1} more" if missing > 1 else ""
            yield f"shard {first:06d}{more} of {self.path} is missing: restore it from a copy"
        if len(present) < len(self.shards):
            yield f"two shards of {self.path} have one number: remove the copy"
        homes: dict[str, str] = {}
        for shard in self.shards:
            for name in shard.subjects["id"].to_pylist():
                if name in homes:
                    yield (
                        f"subject {name!r} is in shard {homes[name]} and in shard "
                        f"{shard.path.name}: remove the shard that is a copy"
                    )
                    break
                homes[name] = shard.path.name

    def check(self) -> LibraryReport:
        """Read everything and compare it with its checksums."""
        found = [tuple(shard.damages()) for shard in self.shards]
        damages = [line for lines in found for line in lines]
        known = {shard.path for shard in self.shards}
        damages += [
            f"{path} is no shard, whose name is six digits: move it elsewhere"
            for path in sorted((self.path / "shards").glob("[!.]*"))
            if path not in known
        ]
        if not any(found):
            damages += self._gaps()
        damages += _complaints(lambda: self.reference)
        damages += _complaints(lambda: stored_facts(self.path))
        if not damages:  # columns are read by the ids of all shards
            for name in self.columns:
                damages += _complaints(partial(self.column, name))
        pairs = zip(self.shards, found, strict=True)
        adapters = sum(shard.count for shard, lines in pairs if not lines)
        return LibraryReport(len(self.shards), adapters, tuple(damages))

    # Writing ------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer; `append` and `attach` do it by themselves, a long job may do it once.

        Raises:
            LibraryError: another process is writing, or this is a selection.
        """
        if self.whole is not self:
            raise LibraryError(f"only the whole of {self.path} can be written, not a selection")
        with _taken(self._lock, self.path):
            self.refresh()
            # What a killed writer left; the lock says that nobody is writing it now.
            for folder in (self.path, self.path / "shards", self.path / "columns"):
                remove_leftovers(folder)
            yield

    def append(self, factors: Factors, subjects: Sequence[Mapping[str, Any]]) -> None:
        """Add adapters as one shard: all of them are there afterwards, or none.

        Args:
            factors: raw factors, stacked.
            subjects: for each adapter a row of the table, with at least a unique text `id`.

        Raises:
            LayoutError: the factors are of another layout or not finite.
            LibraryError: an id is missing or taken, or another process is writing.
        """
        self.layout.require(factors)
        require_finite(factors)
        with self.locked():
            table = self._new_subjects(subjects, count(factors))
            if GAUGES.get(self.info.gauge).needs_reference and self.info.reference_hash is None:
                self.freeze(choose_reference(factors, self.info.gauge))
            stored = next(iter(factors.values())).A.new_empty(
                count(factors), self.width, dtype=getattr(torch, self.info.dtype)
            )
            views = self.layout.unflatten(stored)
            canonicalise(factors, self.info.gauge, self.reference, out=views)
            if not stored.isfinite().all():
                raise LibraryError(
                    f"vectors must fit into {self.info.dtype}, but these do not: "
                    "make the library with dtype='float32'"
                )
            last = max((int(shard.path.name) for shard in self.shards), default=-1)
            number = max(last + 1, self.info.shards)
            raw = map_factors(lambda tensor: tensor.detach().cpu(), factors)
            write_shard(self.path / "shards" / f"{number:06d}", stored.cpu(), raw, table)
            self._state(shards=number + 1)
            self._load_shards()

    def freeze(self, reference: Factors) -> None:
        """Fix for good what the gauge aligns with (factors without batch axis).

        First the file is written, then the hash that vouches for it.

        Raises:
            LayoutError: it is of another layout.
            LibraryError: another process is writing.
        """
        with self.locked():
            vector = self.layout.flatten(reference).detach().cpu().float().contiguous()
            with atomic_file(self.path / _REFERENCE) as temporary:
                save_file({"vector": vector}, temporary)
            self._state(reference_hash=hash_numbers(vector))

    def attach(self, name: str, values: Tensor | NDArray[Any]) -> None:
        """Store an array whose first axis runs over all rows; an older one is replaced.

        Raises:
            LibraryError: its length is not N, or its name is not a plain word.
        """
        if not name.isidentifier():
            raise LibraryError(f"the name of a column must be a plain word, but got {name!r}")
        with self.locked():
            if len(values) != len(self):
                raise LibraryError(
                    f"a column must have one entry for each of the {len(self)} adapters, but "
                    f"{name!r} has {len(values)}"
                )
            write_column(self._column_path(name), torch.as_tensor(values), self.ids)

    def annotate(self, facts: pa.Table) -> list[str]:
        """Add columns to the table, by the subjects' ids; an annotated column may be replaced.

        Args:
            facts: with a column `id` (see `annotations.read_facts`).

        Returns:
            The names of all annotated columns.

        Raises:
            LibraryError: an id is no subject, a column came with the adapters, or another process
                is writing.
        """
        with self.locked():
            merged = write_facts(self.path, facts, self.ids, self.own_table.column_names)
        return [name for name in merged.column_names if name != "id"]

    # Private ------------------------------------------------------------------------------------

    def _load_shards(self) -> None:
        found = [p for p in (self.path / "shards").glob("[0-9]*") if _SHARD.fullmatch(p.name)]
        folders = sorted(found, key=lambda path: int(path.name))
        known = {shard.path: shard for shard in getattr(self, "shards", [])}
        self.shards = [known.get(path) or Shard(path, self.layout) for path in folders]
        for name in ("_starts", "rows"):
            self.__dict__.pop(name, None)  # counted anew

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """First row of each shard, and N."""
        return np.cumsum([0, *(shard.count for shard in self.shards)])

    def _new_subjects(self, subjects: Sequence[Mapping[str, Any]], adapters: int) -> pa.Table:
        if len(subjects) != adapters or adapters == 0:
            raise LibraryError(
                f"every adapter needs its subject, but got {adapters} adapters and "
                f"{len(subjects)} subjects"
            )
        taken = set(self.ids)
        for subject in subjects:
            name = subject.get("id")
            if not isinstance(name, str) or not name:
                raise LibraryError(f"a subject must have a text as id, but got {name!r}")
            if name in taken:
                raise LibraryError(f"a subject is in a library once, but {name!r} occurs again")
            taken.add(name)
        columns = dict.fromkeys(key for subject in subjects for key in subject)
        try:
            table = pa.table({key: [row.get(key) for row in subjects] for key in columns})
            schemas = [*(shard.subjects.schema for shard in self.shards), table.schema]
            pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            raise LibraryError(
                f"a column of subjects must have one type in the whole library, but: {error}"
            ) from error
        return table

    def _state(self, **facts: Any) -> None:
        """Write facts into `library.json`."""
        self.info = replace(self.info, **facts)
        write_json(self.path / _INFO, to_dict(self.info))

    def _column_path(self, name: str) -> Path:
        return self.path / "columns" / f"{name}.safetensors"


def _read_info(path: Path) -> LibraryInfo:
    try:
        stated = read_json(path / _INFO)
        if stated.get("version") != VERSION:
            raise LibraryError(
                f"a library must have version {VERSION}, but {path} has "
                f"{stated.get('version')!r}: use the release that wrote it"
            )
        info = from_dict(LibraryInfo, stated)
    except ConfigError as error:
        raise LibraryError(f"{path} must be a library, but is not: {error}") from error
    return replace(info, recipe=_renamed(info.recipe))


def _renamed(recipe: Any) -> Any:
    """A recipe by the names of today: until 0.1 images were called pictures, `init_from` anchor."""
    if not isinstance(recipe, dict):
        return recipe
    names = {name: "init_from" if name == "anchor" else name.replace("picture", "image")
             for name in recipe}  # fmt: skip
    return {names[name]: _renamed(value) for name, value in recipe.items()}


@contextmanager
def _taken(lock: filelock.FileLock, path: Path) -> Iterator[None]:
    """Be the only writer of a library.

    Raises:
        LibraryError: another process is writing it, or it cannot be written.
    """
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise LibraryError(
            f"a library has one writer at a time, but another process is writing {path}: wait for "
            "it, or end it"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise LibraryError(
            f"a library must be writable, but {path} is not ({error}): choose another path, or "
            "copy it to a disk that is"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _complaints(read: Callable[[], object]) -> list[str]:
    try:
        read()
    except LibraryError as error:
        return [str(error)]
    return []
