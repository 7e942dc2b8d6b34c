"""A folder tree of LoRA files becomes a library: readers in parallel, bad files listed and skipped.

All adapters of a library have one layout and one base model: those of its first file.  Files with
the same modules and a lower rank are padded by zeros; others are skipped with the reason.  Ids are
paths below the folder, so importing again goes on where an earlier run ended.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorasynth.adapter import Adapter, Factor, Factors, pad_rank, stack
from lorasynth.adapter.files import FORMATS, detect
from lorasynth.atomic import write_json
from lorasynth.errors import FileFormatError, LayoutError, LibraryError, LorasynthError
from lorasynth.library.store import Library
from lorasynth.progress import progress

#: The list of what was skipped and why, in the library's folder.
SKIPPED = "skipped.json"

_PEFT_CONFIG = "adapter_config.json"


@dataclass(kw_only=True)
class ImportReport:
    """What one run of `import_folder` did.

    Attributes:
        imported: ids that joined the library in this run.
        skipped: file -> why it did not.
    """

    imported: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def import_folder(
    folder: Path, out: Path, *, gauge: str = "procrustes", workers: int = 4, shard: int = 256
) -> ImportReport:
    """Read every LoRA file below `folder` into the library `out`.

    Args:
        folder: a tree of files in any known format.
        out: the library, made if it is absent.
        gauge: of a new library's canonical vectors.
        workers: files read at once.
        shard: files whose adapters are appended at once; what was appended survives a kill.

    Raises:
        LibraryError: there is nothing to import, no file can be used, or `out` is damaged or being
            written.
        ConfigError: no such gauge.
    """
    paths = find_lora_files(folder)
    run = _Import(folder, out, gauge)
    known = set(run.library.ids) if run.library else set()
    pending = [path for path in paths if run.id_of(path) not in known]
    with (
        ThreadPoolExecutor(workers) as readers,
        progress("import", len(paths), done=len(paths) - len(pending)) as advance,
    ):
        for start in range(0, len(pending), shard):
            chunk = pending[start : start + shard]
            run.take(chunk, readers.map(_read, chunk))
            report = run.report
            advance(len(chunk), f"{len(report.imported)} in, {len(report.skipped)} skipped")
    if run.library is None:
        first, reason = next(iter(run.report.skipped.items()))
        raise LibraryError(
            f"at least one LoRA file must be usable, but all {len(paths)} below {folder} were "
            f"skipped, the first, {first}, because: {reason}"
        )
    write_json(out / SKIPPED, run.report.skipped)
    return run.report


def find_lora_files(folder: Path) -> list[Path]:
    """All LoRA files below a folder, sorted; a PEFT adapter is its folder.

    Raises:
        LibraryError: there is none, or the folder does not exist.
    """
    if not folder.is_dir():
        raise LibraryError(f"LoRA files are imported from a folder, but {folder} is none")
    found = {
        path.parent if (path.parent / _PEFT_CONFIG).is_file() else path
        for path in folder.rglob("*.safetensors")
    }
    if not found:
        raise LibraryError(f"a folder to import must hold *.safetensors, but {folder} has none")
    return sorted(found)


def _read(path: Path) -> tuple[Adapter, str] | LorasynthError:
    """An adapter and the name of its format, or what is wrong with the file."""
    try:
        kind = detect(path)
        return kind.read(path), FORMATS.name_of(type(kind))
    except LorasynthError as error:
        return error


class _Import:
    """One run: the library, once there is one, and what has become of each file."""

    def __init__(self, folder: Path, out: Path, gauge: str) -> None:
        self.folder = folder
        self.out = out
        self.gauge = gauge
        self.library = Library.open(out) if Library.is_at(out) else None
        self.report = ImportReport()

    def id_of(self, path: Path) -> str:
        """The path below the folder, without its ending."""
        inside = path.relative_to(self.folder)
        return (inside.with_suffix("") if path.is_file() else inside).as_posix()

    def take(
        self, paths: Sequence[Path], found: Iterable[tuple[Adapter, str] | LorasynthError]
    ) -> None:
        """Append the adapters that fit as one shard; list the other files as skipped."""
        fitted: list[Factors] = []
        rows: list[dict[str, Any]] = []
        for path, read in zip(paths, found, strict=True):
            try:
                if isinstance(read, LorasynthError):
                    raise read
                adapter, name = read
                fitted.append(self._fit(adapter))
            except LorasynthError as error:
                self.report.skipped[str(path)] = str(error)
                continue
            rows.append(
                {
                    "id": self.id_of(path),
                    "format": name,
                    "trigger_phrase": adapter.metadata.trigger_phrase,
                    "synthesised": adapter.metadata.synthesised,
                }
            )
        if fitted:
            assert self.library is not None, "the first adapter that fitted made it"
            self.library.append(stack(fitted), rows)
            self.report.imported += [row["id"] for row in rows]

    def _fit(self, adapter: Adapter) -> Factors:
        """The factors in the library's layout; the first adapter's layout becomes the library's."""
        base = adapter.metadata.base_fingerprint
        if self.library is None:
            self.library = Library.create(self.out, adapter.layout, base, gauge=self.gauge)
        expected = self.library.info.base_fingerprint
        if base != expected:
            raise FileFormatError(
                f"all adapters of a library change one base model, {expected or 'not named'}, but "
                f"this one changes {base or 'one not named'}"
            )
        layout = self.library.layout
        ranks = {slot.module: slot.rank for slot in layout.slots}
        higher = [m for m, f in adapter.factors.items() if f.rank > ranks.get(m, f.rank)]
        if higher:
            raise LayoutError(
                f"an adapter of this library has at most the rank {ranks[higher[0]]} of its first, "
                f"but this one has {adapter.factors[higher[0]].rank} at {higher[0]}"
            )
        padded = {m: pad_rank(f, ranks.get(m, f.rank)) for m, f in adapter.factors.items()}
        layout.require(padded)
        if dict(adapter.kernels) != layout.kernels:
            raise LayoutError("an adapter of this library has the kernels of its first, not others")
        return {module: Factor(f.A.float(), f.B.float()) for module, f in padded.items()}
