"""A folder tree of LoRA files becomes a library: readers in parallel, bad files listed and skipped.

All adapters of a library change one base model.  A new library gets the modules and the highest
rank of all files of the family that most of them are of, so mixed spellings, ranks and modules fit:
lower ranks are padded by zeros, and a module that a file does not change is zero; how many of these
there are is in the table, column `missing`.  A library that exists keeps its layout; what does not
fit is skipped with the reason.  Ids are paths below the folder, so importing again goes on where an
earlier run ended.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from lorasynth.adapter import Factors, Layout, Slot, map_factors, stack
from lorasynth.adapter.files import LoraFile, read
from lorasynth.adapter.files.container import PEFT_CONFIG, PEFT_WEIGHTS
from lorasynth.core.atomic import write_json
from lorasynth.core.errors import FileFormatError, LayoutError, LibraryError, LorasynthError
from lorasynth.core.progress import progress
from lorasynth.library.store import Library

#: The list of what was skipped and why, in the library's folder.
SKIPPED = "skipped.json"

#: Bytes of the adapters that are appended at once.
_MEMORY = 1 << 30
#: The largest norm of A or B whose square a float32 still holds; no training comes near it.
_LARGEST = 1e9


@dataclass(kw_only=True)
class ImportReport:
    """What one run of `import_folder` did.

    Attributes:
        imported: ids that joined the library in this run.
        skipped: file -> why it did not.
        filled: how many of the imported ones lack modules, which are zero in the library.
    """

    imported: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    filled: int = 0


def import_folder(
    folder: Path, out: Path, *, gauge: str = "procrustes", workers: int = 4, shard: int = 256
) -> ImportReport:
    """Read every LoRA file below `folder` into the library `out`.

    Args:
        folder: a tree of files in any known format.
        out: the library, made if it is absent.
        gauge: of a new library's canonical vectors.
        workers: files read at once.
        shard: the most files whose adapters are appended at once, as many as memory allows; what
            was appended survives a kill.

    Raises:
        LibraryError: there is nothing to import, no file can be used, or `out` is damaged or being
            written.
        ConfigError: no such gauge.
    """
    paths = find_lora_files(folder)
    report = ImportReport()
    with ThreadPoolExecutor(workers) as readers:
        if not Library.is_at(out):
            _create(out, gauge, list(_in_order(readers, _sketch, paths)), folder)
        library = Library.open(out)
        shard = max(1, min(shard, _MEMORY // (4 * library.layout.size)))
        known = set(library.ids)
        pending = [path for path in paths if id_of(folder, path) not in known]
        with progress("import", len(paths), done=len(paths) - len(pending)) as advance:
            for start in range(0, len(pending), shard):
                chunk = pending[start : start + shard]
                found = zip(chunk, _in_order(readers, _read, chunk), strict=True)
                _take(library, folder, found, report)
                advance(len(chunk), f"{len(report.imported)} in, {len(report.skipped)} skipped")
    write_json(out / SKIPPED, report.skipped)
    return report


def find_lora_files(folder: Path) -> list[Path]:
    """All LoRA files below a folder, sorted; a PEFT adapter is its folder.

    Raises:
        LibraryError: there is none, or the folder does not exist.
    """
    if not folder.is_dir():
        raise LibraryError(f"LoRA files are imported from a folder, but {folder} is none")
    found = {
        path.parent if path.name == PEFT_WEIGHTS and (path.parent / PEFT_CONFIG).is_file() else path
        for path in folder.rglob("*.safetensors")
    }
    if not found:
        raise LibraryError(f"a folder of LoRA files must hold *.safetensors, but {folder} has none")
    return sorted(found)


def id_of(folder: Path, path: Path) -> str:
    """The path below the folder, without its ending.

    Of a PEFT folder that has the name of a file too, or is the whole folder, it is its weights'.
    """
    if path.is_file():
        return path.relative_to(folder).with_suffix("").as_posix()
    if path == folder or path.with_name(f"{path.name}.safetensors").exists():
        path /= Path(PEFT_WEIGHTS).stem
    return path.relative_to(folder).as_posix()


def _in_order(readers: ThreadPoolExecutor, job: Any, paths: Sequence[Path]) -> Iterator[Any]:
    """What a job gives for each path, or the error that it ended with, few at a time."""

    def safely(path: Path) -> Any:
        try:
            return job(path)
        except LorasynthError as error:
            return error
        except Exception as error:  # a stranger's file must not stop the others
            return FileFormatError(f"{path} cannot be read ({type(error).__name__}: {error})")

    return readers.map(safely, paths)


def _read(path: Path) -> LoraFile:
    found = read(path)
    for module, factor in found.adapter.factors.items():
        if max(float(part.double().norm()) for part in factor) > _LARGEST:
            raise LayoutError(
                f"the norms of A and B must be at most {_LARGEST:g}, but {module} in {path} has a "
                "larger one: it is damaged, or its training diverged"
            )
    return found


class _Sketch(NamedTuple):
    """What of a file decides a library's layout."""

    layout: Layout
    base: str
    families: frozenset[str]


def _sketch(path: Path) -> _Sketch:
    found = _read(path)
    families = frozenset(family.name for family in found.verdict.candidates)
    return _Sketch(found.adapter.layout, found.adapter.metadata.base_fingerprint, families)


def _create(
    out: Path, gauge: str, sketches: Sequence[_Sketch | LorasynthError], folder: Path
) -> None:
    """Make a library for the base model and family that most files are of."""
    good = [sketch for sketch in sketches if isinstance(sketch, _Sketch)]
    if not good:
        first = next(iter(sketches))
        raise LibraryError(
            f"at least one LoRA file must be usable, but all {len(sketches)} below {folder} were "
            f"skipped, the first because: {first}"
        )
    [((base, families), _)] = Counter((one.base, one.families) for one in good).most_common(1)
    slots: dict[str, Slot] = {}
    for one in good:
        alike = one.families & families if families else not one.families
        if one.base != base or not alike:
            continue
        for slot in one.layout.slots:
            kept = slots.setdefault(slot.module, slot)
            if replace(kept, rank=slot.rank) == slot:
                slots[slot.module] = replace(kept, rank=max(kept.rank, slot.rank))
    Library.create(out, Layout.from_slots(slots.values()), base, gauge=gauge)


class _Fitted(NamedTuple):
    path: Path
    factors: Factors
    row: dict[str, Any]


def _take(
    library: Library,
    folder: Path,
    found: Iterable[tuple[Path, LoraFile | LorasynthError]],
    report: ImportReport,
) -> None:
    """Append the adapters that fit as one shard; list the other files as skipped."""
    fitted: list[_Fitted] = []
    for path, one in found:
        try:
            if isinstance(one, LorasynthError):
                raise one
            factors, missing = _fit(library, one)
        except LorasynthError as error:
            report.skipped[str(path)] = str(error)
            continue
        stated = one.adapter.metadata
        row = {
            "id": id_of(folder, path),
            "format": one.format,
            "trigger_phrase": stated.trigger_phrase,
            "synthesised": stated.synthesised,
            "missing": missing,
        }
        fitted.append(_Fitted(path, factors, row))
    _append(library, fitted, report)


def _append(library: Library, fitted: Sequence[_Fitted], report: ImportReport) -> None:
    """Append together, or one by one where one of them cannot be appended."""
    if not fitted:
        return
    try:
        library.append(stack([one.factors for one in fitted]), [one.row for one in fitted])
    except (LorasynthError, RuntimeError, ArithmeticError, ValueError) as error:
        if len(fitted) == 1:
            report.skipped[str(fitted[0].path)] = str(error)
            return
        for one in fitted:
            _append(library, [one], report)
        return
    report.imported += [one.row["id"] for one in fitted]
    report.filled += sum(one.row["missing"] > 0 for one in fitted)


def _fit(library: Library, found: LoraFile) -> tuple[Factors, int]:
    """The factors in the library's layout, and how many of its modules the adapter lacks."""
    adapter, layout = found.adapter, library.layout
    base, expected = adapter.metadata.base_fingerprint, library.info.base_fingerprint
    if base != expected:
        raise FileFormatError(
            f"all adapters of a library change one base model, {expected or 'not named'}, but "
            f"this one changes {base or 'one not named'}"
        )
    slots = {slot.module: slot for slot in layout.slots}
    for slot in adapter.layout.slots:
        kept = slots.get(slot.module)
        if kept is None:
            raise LayoutError(
                f"an adapter of this library changes its modules only, but this one changes "
                f"{slot.module} too"
            )
        if slot.rank > kept.rank or replace(slot, rank=kept.rank) != kept:
            raise LayoutError(
                f"{slot.module} in this library is {kept.in_features} -> {kept.out_features} with "
                f"kernel {kept.kernel} and at most the rank {kept.rank}, but this one has "
                f"{slot.in_features} -> {slot.out_features} with kernel {slot.kernel} and rank "
                f"{slot.rank}"
            )
    given = map_factors(lambda part: part.float(), adapter.factors)
    factors = {module: slot.factor_of(given) for module, slot in slots.items()}
    return factors, len(slots.keys() - adapter.factors.keys())
