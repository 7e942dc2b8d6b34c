"""Join the parts of a collection: each adapter once, in the source's order.

The result is what one process would have collected.  A join that was killed goes on where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasynth.adapter import Factors, concatenate, map_factors
from lorasynth.collect.collector import require_place
from lorasynth.collect.failures import Failures
from lorasynth.collect.part import PartRecord
from lorasynth.core.errors import CollectionError, LibraryError
from lorasynth.core.progress import progress
from lorasynth.library import Library

#: Adapters that are appended at once.
_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class JoinReport:
    """What `join` did.

    Attributes:
        adapters: in the joined library.
        joined: that were not in it before.
        failed: subjects that gave no adapter.
        columns: that all parts have, and now the library.
    """

    adapters: int
    joined: int
    failed: int
    columns: Sequence[str]


@dataclass(frozen=True)
class _Collected:
    """A part as it is on disk: its library, its record, and why subjects have no adapter."""

    library: Library
    record: PartRecord
    failures: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, path: Path) -> "_Collected":
        record = PartRecord.read(path)
        return cls(Library.open(path), record, Failures(path).found)

    def require_complete(self) -> None:
        """Refuse a part that is not done.

        Raises:
            CollectionError: it has subjects with neither an adapter nor a failure.
        """
        known = {*self.library.ids, *self.failures}
        part = self.record.part
        missing = [name for name in part.of(self.record.ids) if name not in known]
        if missing:
            raise CollectionError(
                f"a part must be complete before it is joined, but part {part.number} of "
                f"{part.count} lacks {len(missing)} subjects, the first {missing[0]!r}: run it "
                "again to its end"
            )


def join(out: Path, paths: Sequence[Path] = ()) -> JoinReport:
    """Bring all parts of a collection together in one library.

    Args:
        out: the library to make, or to go on with.
        paths: of the parts' libraries; none for those in `<out>/parts`.

    Raises:
        CollectionError: a part is missing, incomplete or of another collection.
        LibraryError: a library is damaged, is being written, or `out` holds something else.
        LorasynthError: see `require_place`.
    """
    if not paths:
        paths = sorted(path for path in (out / "parts").glob("*-of-*") if path.is_dir())
    require_place(out)
    parts = _complete([_Collected.open(path) for path in paths], out)
    library, failures, sources = *_open(out, parts), _Sources.of(parts)
    ids = [name for name in parts[0].record.ids if name in sources.homes]
    with library.locked():
        known = set(library.ids)
        pending = [name for name in ids if name not in known]
        with progress("join", len(ids), done=len(ids) - len(pending)) as advance:
            for start in range(0, len(pending), _ROWS):
                chunk = pending[start : start + _ROWS]
                library.append(sources.factors(chunk), [sources.facts[name] for name in chunk])
                advance(len(chunk))
        columns = _join_columns(library, parts)
        failed = {name: facts for part in parts for name, facts in part.failures.items()}
        failures.update(failed, library.ids)
    return JoinReport(
        adapters=len(library), joined=len(pending), failed=len(failed), columns=columns
    )


def _complete(parts: list[_Collected], out: Path) -> list[_Collected]:
    """The parts by number, if each is there once, whole and of the same collection."""
    if not parts:
        raise CollectionError(
            f"a join needs the parts of a collection, but {out / 'parts'} holds none: collect with "
            "--shard, or name the parts"
        )
    parts = sorted(parts, key=lambda part: part.record.part.number)
    first = parts[0]
    for part in parts:
        if (part.record.part.count, part.record.ids, part.library.info.recipe) != (
            first.record.part.count,
            first.record.ids,
            first.library.info.recipe,
        ):
            raise CollectionError(
                "parts must be of one collection, with one source and recipe, but "
                f"{part.library.path} differs from {first.library.path}: join those of one kind"
            )
        part.require_complete()
    numbers, count = [part.record.part.number for part in parts], first.record.part.count
    if numbers != list(range(1, count + 1)):
        raise CollectionError(
            f"a join needs each of {count} parts once, but got {', '.join(map(str, numbers))}: "
            "collect those that are missing"
        )
    return parts


def _open(out: Path, parts: Sequence[_Collected]) -> tuple[Library, Failures]:
    """The library of the parts' form at `out`, made if there is none."""
    info, failures = parts[0].library.info, Failures(out)
    for part in parts:
        _require_same_form(part.library, parts[0].library)
    if not Library.is_at(out):
        layout = parts[0].library.layout
        fingerprint, recipe = info.base_fingerprint, info.recipe
        failures.forget()
        made = Library.create(out, layout, fingerprint, recipe, gauge=info.gauge, dtype=info.dtype)
        return made, failures
    library = Library.open(out)
    _require_same_form(library, parts[0].library)
    return library, failures


def _require_same_form(library: Library, other: Library) -> None:
    for name in ("base_fingerprint", "recipe", "layout", "gauge", "dtype"):
        if getattr(library.info, name) != getattr(other.info, name):
            raise LibraryError(
                f"libraries that are joined must have one {name}, but {library.path} and "
                f"{other.path} differ in it: join into another path"
            )


@dataclass(frozen=True)
class _Sources:
    """Where each subject's adapter is, and what is known of it."""

    homes: Mapping[str, Library]
    facts: Mapping[str, dict[str, Any]]

    @classmethod
    def of(cls, parts: Sequence[_Collected]) -> "_Sources":
        homes = {name: part.library for part in parts for name in part.library.ids}
        tables = [part.library.table.to_pylist() for part in parts]
        return cls(homes, {row["id"]: row for table in tables for row in table})

    def factors(self, ids: Sequence[str]) -> Factors:
        """Raw factors of subjects, stacked in the order of `ids`."""
        groups: dict[Path, list[str]] = {}
        for name in ids:
            groups.setdefault(self.homes[name].path, []).append(name)
        found = []
        for names in groups.values():
            library = self.homes[names[0]]
            found.append(library.factors(library.rows_of(names)))
        grouped = [name for names in groups.values() for name in names]
        place = {name: row for row, name in enumerate(grouped)}
        order = torch.tensor([place[name] for name in ids])
        return map_factors(lambda part: part[order], concatenate(found))


def _join_columns(library: Library, parts: Sequence[_Collected]) -> list[str]:
    """Attach the embeddings that all parts have; of each subject as many as the least has."""
    used = [part.library for part in parts if len(part.library)]
    names = set.intersection(*(set(part.columns) for part in used)) if used else set()
    for name in sorted(names):
        values: dict[str, Tensor] = {}
        for part in used:
            values |= zip(part.ids, part.column(name), strict=True)
        if set(values) != set(library.ids):  # it holds adapters of other collections too
            return []
        shortest = min(len(value) for value in values.values())
        library.attach(name, torch.stack([values[row][:shortest] for row in library.ids]))
    return sorted(names)
