"""`lorasynth inspect`, `convert`, `resize`, `merge` and `extract`: LoRA files of any kind."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional, UseAppendAction, arg

from lorasynth.commands.shared import OfFamily, WithFormat
from lorasynth.core.command import Command, Out
from lorasynth.core.errors import ConfigError, FileFormatError, LorasynthError, escaped

if TYPE_CHECKING:
    import torch

    from lorasynth.adapter import Adapter
    from lorasynth.adapter.files import LoraFormat
    from lorasynth.adapter.files.conversion import Reduced
    from lorasynth.adapter.inspection import Inspection

Rank = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
#: Relative difference of strengths that number types of 16 bits make.
_SAME = 0.01
Program = Literal["comfyui", "diffusers", "a1111", "peft", "ai-toolkit", "kohya"]


@dataclass(frozen=True, kw_only=True)
class _Writes(Command, WithFormat):
    """A command that writes one LoRA file.

    Attributes:
        dtype: Of the numbers; default: as in the file that is read.
    """

    group: ClassVar[str] = "LoRA files"

    dtype: Literal["float32", "float16", "bfloat16"] | None = None

    def save(
        self,
        adapter: "Adapter",
        out: Path,
        dtype: "torch.dtype",
        writer: "LoraFormat | None" = None,
    ) -> Path:
        """Write the adapter, as far as its type can hold it."""
        import torch

        from lorasynth.adapter.files import FORMATS
        from lorasynth.adapter.lowrank import narrowed

        number: torch.dtype = getattr(torch, self.dtype) if self.dtype else dtype
        factors = narrowed(adapter.factors, number)
        written = (writer or FORMATS.get(self.format)).write(replace(adapter, factors=factors), out)
        print(written)
        return written

    def target(self, out: Path) -> None:
        """Refuse a name that the format does not have, before the work."""
        from lorasynth.adapter.files import FORMATS

        FORMATS.get(self.format).target(out)


@dataclass(frozen=True, kw_only=True)
class Convert(_Writes, OfFamily):
    """Write a LoRA in another spelling; its update stays as it is, its scale in the numbers.

    LoHa, LoKr, Tucker cores and whole differences become a LoRA, exactly where --rank allows; so
    does DoRA, with --base.

    Attributes:
        lora: LoRA file or folder.
        out: LoRA file (peft: folder) to write.
        program: Instead of a format, the program that is to read it.
        rank: The highest rank of what is no plain LoRA.
        base: Checkpoint of the base model, for DoRA: a file, or a folder with the denoiser.
    """

    lora: Positional[Path]
    out: Positional[Path]
    program: Annotated[Program | None, arg(name="for")] = None
    rank: Rank = 128
    base: Path | None = None

    def run(self) -> Path:
        """Write the file."""
        from lorasynth.adapter.families import family_named
        from lorasynth.adapter.files import format_for
        from lorasynth.adapter.files.conversion import read_any

        if self.program is None:
            self.target(self.out)
        elif self.format != "auto":
            raise ConfigError(f"a file has one format, but got --format {self.format} and --for")
        made = read_any(self.lora, self.rank, family_named(self.family), self.base)
        adapter = made.file.adapter
        writer = format_for(self.program, adapter) if self.program else None
        written = self.save(adapter, self.out, made.file.dtype, writer)
        if made.kinds:
            _say_error(f"made of {' and '.join(made.kinds)}", made)
        return written


def _say_error(what: str, made: "Reduced") -> None:
    print(
        f"{what}: rank {made.rank}, relative error {made.error:.2g}, of the worst module "
        f"{made.worst:.2g}",
        file=sys.stderr,
    )


@dataclass(frozen=True, kw_only=True)
class Resize(_Writes):
    """Write a LoRA at a lower rank: the nearest update of that rank, module by module.

    Attributes:
        lora: LoRA file or folder.
        out: LoRA file (peft: folder) to write.
        rank: The highest rank.
        energy: Share of the squared norm that is enough.
    """

    lora: Positional[Path]
    out: Positional[Path]
    rank: Rank
    energy: Share = 1.0

    def run(self) -> Path:
        """Write the file."""
        from lorasynth.adapter.files import read
        from lorasynth.adapter.files.conversion import Reduced
        from lorasynth.adapter.lowrank import truncated

        self.target(self.out)
        found = read(self.lora)
        parts = {
            module: truncated(factor, self.rank, self.energy)
            for module, factor in found.adapter.factors.items()
        }
        smaller = replace(found.adapter, factors={m: part.factor for m, part in parts.items()})
        written = self.save(smaller, self.out, found.dtype)
        _say_error("resized", Reduced.of(found, list(parts.values())))
        return written


@dataclass(frozen=True, kw_only=True)
class Merge(_Writes):
    """Join LoRAs: `sum` puts them beside each other, so ranks add up; ties and dare prune first.

    Example: lorasynth merge me.safetensors a.safetensors --weight 1 --weight 0.6 -o b.safetensors

    Attributes:
        loras: LoRA files.
        out: LoRA file (peft: folder) to write.
        weight: Weight of each file, in their order; default: 1.
        method: sum (exact), ties or dare.
        density: Share of the numbers that ties and dare keep.
        rank: The highest rank that ties and dare make.
    """

    loras: Positional[Annotated[tuple[Path, ...], Field(min_length=1)]]
    out: Out
    weight: UseAppendAction[tuple[Annotated[float, Field(allow_inf_nan=False)], ...]] = ()
    method: Literal["sum", "ties", "dare"] = "sum"
    density: Share = 0.5
    rank: Rank = 64

    def run(self) -> Path:
        """Write the file."""
        from lorasynth.adapter.addition import merged
        from lorasynth.adapter.files import read

        self.target(self.out)
        weights = self.weight or (1.0,) * len(self.loras)
        if len(weights) != len(self.loras):
            raise ConfigError(f"--weight is said for each of {len(self.loras)} files, or for none")
        files = [read(source) for source in self.loras]
        first, name = files[0].verdict.candidates, files[0].verdict.name
        for source, file in zip(self.loras, files, strict=True):
            if not set(file.verdict.candidates) & set(first) and file.verdict.name != name:
                raise FileFormatError(
                    f"LoRAs to merge must be for one family, but {self.loras[0]} is for {name} and "
                    f"{source} for {file.verdict.name}"
                )
        adapters = [file.adapter for file in files]
        adapter, error = merged(adapters, weights, self.method, self.density, self.rank)
        written = self.save(adapter, self.out, files[0].dtype)
        if self.method != "sum":
            line = f"merged by {self.method}: rank {self.rank}, relative error {error:.2g}"
            print(line, file=sys.stderr)
        return written


@dataclass(frozen=True, kw_only=True)
class Extract(_Writes, OfFamily):
    """Make a LoRA of the difference of two checkpoints' denoisers, read layer by layer.

    Attributes:
        tuned: Fine-tuned checkpoint: folder or file.
        original: The checkpoint that it was tuned from.
        out: LoRA file (peft: folder) to write.
        rank: The highest rank.
        dtype: Of the numbers; default: float16.
    """

    tuned: Positional[Path]
    original: Positional[Path]
    out: Positional[Path]
    rank: Rank = 64

    def run(self) -> Path:
        """Write the file."""
        import torch

        from lorasynth.adapter.families import family_named
        from lorasynth.adapter.files.conversion import extracted

        self.target(self.out)
        made = extracted(self.tuned, self.original, self.rank, family_named(self.family))
        written = self.save(made.file.adapter, self.out, torch.float16)
        _say_error("extracted from the denoiser", made)
        if made.left_out:
            line = (
                f"{len(made.left_out)} changed tensors are no matrices of layers, such as "
                f"{escaped(made.left_out[0])}, and are left out"
            )
            print(line, file=sys.stderr)
        return written


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Say what a LoRA file is, how much of it each program reads, and whether it fits a base model.

    Of several files, or all in a folder, it says this in a line each, and which of them have the
    same update. The exit status is 1 where an update is broken or no program reads all of it, and 2
    where a file cannot be read or does not fit the base model.

    Attributes:
        loras: LoRA files, or folders with some.
        base: Base model to compare every key with: a pipeline folder, or hub:owner/name. Of its
            weights a few numbers are read, if a file states for which ones it was made.
        json: Print JSON.
    """

    group: ClassVar[str] = "LoRA files"

    loras: Positional[Annotated[tuple[Path, ...], Field(min_length=1)]]
    base: str | None = None
    json: bool = False

    def run(self) -> "list[Inspection]":
        """Print it.

        Raises:
            SystemExit: a file is not sound, or one of several cannot be read.
            FileFormatError: the only file cannot be read, or does not fit the base model.
        """
        from lorasynth.adapter.files.container import is_lora
        from lorasynth.library.foreign import find_lora_files

        one = len(self.loras) == 1 and (is_lora(self.loras[0]) or not self.loras[0].is_dir())
        if one:
            return [self._alone(self.loras[0])]
        paths = [
            path
            for given in self.loras
            for path in (find_lora_files(given) if given.is_dir() else [given])
        ]
        return self._together(paths)

    def _alone(self, path: Path) -> "Inspection":
        from lorasynth.adapter.inspection import inspect_file

        found = inspect_file(path)
        misfits, base = self._compared(found)
        if self.json:
            facts = _plain(asdict(found)) | ({} if self.base is None else {"misfits": misfits})
            print(json.dumps(facts, indent=1))
        else:
            _print(found, base)
            print("\n".join(misfits), end="\n" * bool(misfits))
        if misfits:
            raise FileFormatError(
                f"every module of a LoRA must fit the base model, but of the {found.modules} in "
                f"{path} {len(misfits)} do not fit {self.base}"
            )
        if self.base is not None and not self.json:
            print(f"all {found.modules} modules fit {self.base}")
        if not found.sound:
            raise SystemExit(1)
        return found

    def _together(self, paths: list[Path]) -> "list[Inspection]":
        from lorasynth.adapter.inspection import inspect_file, twins

        found: list[Inspection] = []
        errors: dict[Path, str] = {}
        for path in paths:
            try:
                found.append(inspect_file(path))
            except LorasynthError as error:
                errors[path] = str(error)
        same = twins([one.signature for one in found])
        notes = [[*one.faults, *one.warnings] for one in found]
        for later, (first, strength) in same.items():
            times = "" if abs(strength - 1) < _SAME else f" times {strength:.3g}"
            notes[later].insert(0, f"the same update as {found[first].file}{times}")
        misfits = []
        for one, note in zip(found, notes, strict=True):
            lines, base = self._compared(one)
            misfits.append(lines)
            note += [f"{len(lines)} modules do not fit {self.base}"] if lines else []
            note += [f"made for the weights {base}"] if self.base and base else []
        if self.json:
            facts = [
                _plain(asdict(one)) | {"notes": n} for one, n in zip(found, notes, strict=True)
            ]
            facts += [{"file": str(path), "error": reason} for path, reason in errors.items()]
            print(json.dumps(facts, indent=1))
        else:
            _print_all(found)
            for one, lines in zip(found, notes, strict=True):
                for line in lines:
                    print(f"{one.file}: {line}")
            for reason in errors.values():
                print(f"error: {reason}")
        if errors or any(misfits):
            raise SystemExit(2)
        if not all(one.sound for one in found):
            raise SystemExit(1)
        return found

    def _compared(self, found: "Inspection") -> tuple[list[str], str]:
        """What does not fit the base model, a line for each module; and whose weights it states."""
        stated = found.metadata.base_fingerprint
        if self.base is None:
            return [], stated
        from lorasynth.base.outline import outline

        base = outline(self.base)
        misfits = [escaped(line) for line in base.misfits(found.layout)]
        if stated and (here := base.stored_fingerprint()):
            stated += f", as {self.base}" if stated == here else f", not {self.base}, {here}"
        return misfits, stated


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items() if key != "layout"}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _print_all(found: "list[Inspection]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "family", "format", "rank", "modules", "norm", "read whole by")
    for one in found:
        ranks = f"{min(one.ranks)} to {max(one.ranks)}" if len(one.ranks) > 1 else min(one.ranks)
        norm = f"{math.hypot(*one.norms.values()):.4g}"
        whole = ", ".join(reading.program for reading in one.programs if reading.whole)
        cells = (one.file, one.family, one.format, ranks, one.modules, norm, whole)
        table.add_row(*(Text(escaped(str(cell))) for cell in cells))
    Console().print(table)


def _print(found: "Inspection", base: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    facts = _facts(found, base)
    width = max(map(len, facts))

    def say(line: str, style: str = "") -> None:
        console.print(escaped(line), style=style, markup=False, highlight=False, soft_wrap=True)

    for name, value in facts.items():
        say(f"{name:<{width}} {value}")
    programs = Table("program", "reads of its modules", "loses")
    for one in found.programs:
        programs.add_row(one.program, f"{one.modules} of {one.of}", Text(escaped(one.lost)))
    norms = Table("block", "norm of its update", "")
    norms.columns[1].justify = "right"
    largest = max((norm for norm in found.norms.values() if math.isfinite(norm)), default=0.0)
    for block, norm in found.norms.items():
        share = norm / largest if math.isfinite(norm) and largest else float(norm > 0)
        norms.add_row(Text(escaped(block)), f"{norm:.4g}", "█" * round(24 * share))
    console.print(programs)
    console.print(norms)
    for warning in (*found.faults, *found.warnings):
        say(f"warning: {warning}", "yellow")


def _facts(found: "Inspection", base: str) -> dict[str, str]:
    def counted(values: dict[int, int] | dict[float, int]) -> str:
        return ", ".join(f"{value:g} ({count} modules)" for value, count in values.items())

    stated = found.metadata
    facts = {
        "file": str(found.file),
        "format": found.format,
        "family": f"{found.family} (by {found.told_by})",
        "base": base or "not stated",
        "rank": counted(found.ranks),
        "alpha": counted(found.alphas),
        "parameters": f"{found.parameters:,} {found.dtype} in {found.modules} modules",
        "canonical": "yes" if found.canonical else "no",
        "trigger": stated.trigger_phrase or "not stated",
        "origin": "synthesised" if stated.synthesised else "not stated to be synthesised",
        "written by": stated.created_by or "not stated",
    }
    # What a header says of itself has names of its own, so that it cannot pass for a fact.
    return facts | {
        f"header {key}": value for key, value in (found.training | stated.extra).items()
    }
