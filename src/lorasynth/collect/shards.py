"""A collection in n parts, for machines that share nothing but a disk, and the join of the parts.

A library has one writer, so each part is a library of its own, at `<library>/parts/<i>-of-<n>`.
Beside it, `<i>-of-<n>.part.json` says of which source it is a part: all of its subjects, in order.
The join is what one process would have collected.  One that was killed goes on where it was.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorasynth.adapter import Factors, concatenate, map_factors
from lorasynth.collect.collector import require_place
from lorasynth.collect.failures import Failures
from lorasynth.core.atomic import write_json
from lorasynth.core.config import read_json
from lorasynth.core.errors import CollectionError, ConfigError, LibraryError
from lorasynth.core.progress import progress
from lorasynth.images import Subject, SubjectSource
from lorasynth.library import Library

#: Adapters that are appended at once.
_ROWS = 256


@dataclass(frozen=True)
class Part:
    """Part `number`, counted from 1, of `count`: every `count`-th subject of the source."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `i/n`.

        Raises:
            ConfigError: it is not that, or i is not from 1 to n.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        part = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= part.number <= part.count:
            raise ConfigError(
                f"--shard must be i/n with i from 1 to n, such as 2/8, but is {text!r}"
            )
        return part

    def of(self, ids: Sequence[str]) -> Sequence[str]:
        """The subjects of this part, in the source's order."""
        return ids[self.number - 1 :: self.count]


@dataclass(frozen=True)
class ChosenSubjects:
    """Some of the subjects of a source."""

    source: SubjectSource
    chosen: Sequence[str]

    @property
    def ids(self) -> list[str]:
        """Those that were chosen, in the order in which they were."""
        return list(self.chosen)

    def load(self, subject_id: str) -> Subject:
        """Load one from the source.

        Raises:
            ImageError: an image of the subject cannot be used.
        """
        return self.source.load(subject_id)


def begin_part(source: SubjectSource, library: Path, part: Part) -> tuple[SubjectSource, Path]:
    """The subjects of a part and the path of its library, after writing its record.

    Raises:
        CollectionError: the part has no subject, or was begun with another source.
    """
    ids, path = list(source.ids), library / "parts" / f"{part.number}-of-{part.count}"
    chosen = part.of(ids)
    if not chosen:
        raise CollectionError(
            f"a part must have at least one subject, but of {len(ids)} subjects part "
            f"{part.number} of {part.count} has none: use fewer parts"
        )
    if _record_of(path).is_file() and _read_record(path)[1] != ids:
        raise CollectionError(
            f"all runs of a part must have one source, but {path} was begun with other subjects: "
            "use those, or another library"
        )
    write_json(_record_of(path), {"number": part.number, "count": part.count, "ids": ids})
    return ChosenSubjects(source, chosen), path


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")


def _read_record(path: Path) -> tuple[Part, list[str]]:
    """Which part has its library at a path, and all subjects of its source."""
    file = _record_of(path)
    if not file.is_file():
        raise CollectionError(
            f"a part must have been collected with --shard, but {file} is not there: collect it, "
            "or name other parts"
        )
    stated: dict[str, Any] = read_json(file)
    try:
        part = Part(int(stated["number"]), int(stated["count"]))
        return part, [str(name) for name in stated["ids"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CollectionError(
            f"the record of a part must state number, count and ids, but {file} does not "
            f"({error!r}): collect the part again to write it anew"
        ) from error


class JoinReport(NamedTuple):
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


class _Collected(NamedTuple):
    """A part as it is on disk: its library, its record, and why subjects have no adapter."""

    library: Library
    part: Part
    ids: Sequence[str]
    failures: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, path: Path) -> "_Collected":
        return cls(Library.open(path), *_read_record(path), Failures(path).found)

    def require_like(self, first: "_Collected") -> None:
        """Refuse a part that is not done, or of another collection.

        Raises:
            CollectionError: it is.
        """
        recipes = self.library.info.recipe, first.library.info.recipe
        if (self.part.count, self.ids) != (first.part.count, first.ids) or recipes[0] != recipes[1]:
            raise CollectionError(
                "parts must be of one collection, with one source and recipe, but "
                f"{self.library.path} differs from {first.library.path}: join those of one kind"
            )
        known = {*self.library.ids, *self.failures}
        if missing := [name for name in self.part.of(self.ids) if name not in known]:
            raise CollectionError(
                f"a part must be complete before it is joined, but part {self.part.number} of "
                f"{self.part.count} lacks {len(missing)} subjects, the first {missing[0]!r}: run "
                "it again to its end"
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
    library, failures = _open(out, parts)
    homes = {name: part.library for part in parts for name in part.library.ids}
    rows = {row["id"]: row for part in parts for row in part.library.table.to_pylist()}
    ids = [name for name in parts[0].ids if name in homes]
    with library.locked():
        known = set(library.ids)
        pending = [name for name in ids if name not in known]
        with progress("join", len(ids), done=len(ids) - len(pending)) as advance:
            for start in range(0, len(pending), _ROWS):
                chunk = pending[start : start + _ROWS]
                library.append(_factors(homes, chunk), [rows[name] for name in chunk])
                advance(len(chunk))
        columns = _join_columns(library, parts)
        failed = {name: facts for part in parts for name, facts in part.failures.items()}
        failures.update(failed, library.ids)
    return JoinReport(len(library), len(pending), len(failed), columns)


def _complete(parts: list[_Collected], out: Path) -> list[_Collected]:
    """The parts by number, if each is there once, whole and of the same collection."""
    if not parts:
        raise CollectionError(
            f"a join needs the parts of a collection, but {out / 'parts'} holds none: collect with "
            "--shard, or name the parts"
        )
    parts = sorted(parts, key=lambda one: one.part.number)
    for one in parts:
        one.require_like(parts[0])
    numbers, count = [one.part.number for one in parts], parts[0].part.count
    if numbers != list(range(1, count + 1)):
        raise CollectionError(
            f"a join needs each of {count} parts once, but got {', '.join(map(str, numbers))}: "
            "collect those that are missing"
        )
    return parts


def _open(out: Path, parts: Sequence[_Collected]) -> tuple[Library, Failures]:
    """The library of the parts' form at `out`, made if there is none."""
    first, failures, fresh = parts[0].library, Failures(out), not Library.is_at(out)
    info = first.info
    if fresh:
        failures.forget()
        stated = (first.layout, info.base_fingerprint, info.recipe)
        library = Library.create(out, *stated, gauge=info.gauge, dtype=info.dtype)
    else:
        library = Library.open(out)
    for other in (library, *(one.library for one in parts)):
        for name in ("base_fingerprint", "recipe", "layout", "gauge", "dtype"):
            if getattr(other.info, name) != getattr(info, name):
                raise LibraryError(
                    f"libraries that are joined must have one {name}, but {other.path} and "
                    f"{first.path} differ in it: join into another path"
                )
    return library, failures


def _factors(homes: Mapping[str, Library], ids: Sequence[str]) -> Factors:
    """Raw factors of subjects, stacked in the order of `ids`."""
    groups: dict[Path, list[str]] = {}
    for name in ids:
        groups.setdefault(homes[name].path, []).append(name)
    found = [homes[names[0]].factors(homes[names[0]].rows_of(names)) for names in groups.values()]
    place = {
        name: row for row, name in enumerate(one for names in groups.values() for one in names)
    }
    order = torch.tensor([place[name] for name in ids])
    return map_factors(lambda part: part[order], concatenate(found))


def _join_columns(library: Library, parts: Sequence[_Collected]) -> list[str]:
    """Attach the embeddings that all parts have; of each subject as many as the least has."""
    used = [one.library for one in parts if len(one.library)]
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
