"""weights2weights as published (Dravid et al. 2024, arXiv 2406.09413) becomes a library.

all_weights.pt          64,974 x 99,648 numbers: A and B of each module as PEFT trained them
weight_dimensions.pt    key of each factor -> ((numbers,), shape), in the order of the numbers
adapter_config.json     rank and alpha (1 and 27): ΔW = 27·B·A, so 27 is folded into B here
identity_df.parquet     a row for each adapter: `file`, its folder's number, and labels (or .csv)

Rows follow the alphanumeric order of the folders' names (`10` before `2`).  As published the table
is a pickle of a pandas table.  Loading a pickle runs whatever is in it, so that is left to its
owner: PANDAS says how.  Tensors are read by `torch.load(weights_only=True)`, which runs nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lorasynth.adapter import Factor, Factors, Layout, Slot, map_factors
from lorasynth.core.atomic import write_json
from lorasynth.core.config import read_json
from lorasynth.core.errors import FileFormatError, LayoutError, LibraryError, quoted, reason_of
from lorasynth.core.hub import fetch
from lorasynth.core.places import HUB, folder_of, repository
from lorasynth.core.progress import progress
from lorasynth.core.splits import split_of
from lorasynth.library.foreign import SKIPPED, ImportReport
from lorasynth.library.groups import groups_by_likeness
from lorasynth.library.store import Library
from lorasynth.library.torch_files import SavedMatrix, load_small
from lorasynth.library.vectors import Stored

WEIGHTS, DIMENSIONS, CONFIG = "all_weights.pt", "weight_dimensions.pt", "adapter_config.json"
TABLES = ("identity_df.parquet", "identity_df.csv")
PICKLED_TABLE = "identity_df.pt"

#: The published folder of adapters of people; others are of dogs and the like.
_IDENTITIES = "identities"

#: What turns the published table into one that can be read, where its owner trusts it.
PANDAS = (
    "python -c \"import torch; torch.load('identity_df.pt', weights_only=False)"
    ".to_csv('identity_df.csv')\""
)

#: Alpha of the published adapters, where no configuration is beside them.
ALPHA = 27.0

#: Adapters appended at once; what was appended survives a kill.
AT_ONCE = 256

#: Seed of the split of people into train, validation and test.
_SPLIT_SEED = 0

_KEY = re.compile(r"(?:base_model\.model\.|lora_unet_)?(.+?)[._]lora[._](A|B)(?:\.\w+)?\.weight")


class Piece(NamedTuple):
    """Where one factor is within a row."""

    start: int
    shape: tuple[int, int]

    def of(self, rows: Float[Tensor, "n D"]) -> Float[Tensor, "n _ _"]:
        """The factor of some rows, as a view."""
        rank, width = self.shape
        return rows[:, self.start : self.start + rank * width].view(-1, rank, width)


#: Module -> its A and its B within a row.
Pieces: TypeAlias = Mapping[str, tuple[Piece, Piece]]


def published_layout(shrink: int = 1) -> Layout:
    """The layout of the published adapters; all widths divided by `shrink`, for smaller ones."""
    blocks = [
        *((f"down_blocks.{i}.attentions.{j}", 320 << i) for i in range(3) for j in range(2)),
        ("mid_block.attentions.0", 1280),
        *((f"up_blocks.{i}.attentions.{j}", 2560 >> i) for i in range(1, 4) for j in range(3)),
    ]
    return Layout.from_slots(
        Slot(
            f"{block}.transformer_blocks.0.{attention}.{part}",
            (768 if (attention, part) == ("attn2", "to_v") else width) // shrink,
            width // shrink,
            1,
        )
        for block, width in blocks
        for attention in ("attn1", "attn2")
        for part in ("to_q", "to_v")
    )


def import_w2w(
    source: str,
    out: Path,
    *,
    gauge: str = "procrustes",
    dtype: Stored = "float32",
    person: str = "identity",
    embeddings: Path | None = None,
) -> ImportReport:
    """Read weights2weights' files into the library `out`; run again to go on.

    The table of subjects gets all columns of theirs, `row` (in all_weights.pt) and, where it is
    known who is shown, `person` and the `split` that follows from it.

    Args:
        source: a folder with the files anywhere below it, or hub:owner/name.
        out: the library, made if it is absent.
        gauge: of a new library's canonical vectors.
        dtype: type in which a new library stores vectors, and raw factors too.
        person: column of the table that says who is shown.
        embeddings: an .npy file with an embedding of each row's images; rows that are alike are
            taken to show one person where the table does not say.

    Raises:
        LibraryError: a file is missing, or the table or the library belongs to other adapters.
        FileFormatError: a file is not what its name says, or would run code.
    """
    files = W2WFiles.find(source)
    rows = _subjects(files, person, embeddings)
    recipe = {"source": "weights2weights", "scale": files.scale, "rows": len(rows)}
    if Library.is_at(out):
        library = Library.open(out)
        if library.info.recipe != recipe or library.layout != files.layout:
            raise LibraryError(
                f"an import goes on in the library that it began, but {out} is another (recipe "
                f"{library.info.recipe} instead of {recipe}): choose another path"
            )
    else:
        library = Library.create(out, files.layout, recipe=recipe, gauge=gauge, dtype=dtype)
    before = read_json(out / SKIPPED) if (out / SKIPPED).is_file() else {}
    report = ImportReport(skipped=dict(before))
    start = max(library.table["row"].to_pylist(), default=-1) + 1 if len(library) else 0
    with library.locked(), progress("import", len(rows), done=start) as advance:
        for first in range(start, len(rows), AT_ONCE):
            last = min(first + AT_ONCE, len(rows))
            _take(library, files.factors(first, last), rows[first:last], report)
            advance(last - first, f"{len(report.imported)} in, {len(report.skipped)} skipped")
    return report


def _take(
    library: Library, factors: Factors, rows: Sequence[dict[str, Any]], report: ImportReport
) -> None:
    """Append the adapters whose numbers can be stored as one shard; list the others before that."""
    dtype = library.info.dtype
    stored = map_factors(lambda x: x.to(getattr(torch, dtype)), factors)
    usable, kept = _finite(stored), []
    for row, fits, finite in zip(rows, usable.tolist(), _finite(factors).tolist(), strict=True):
        if fits:
            kept.append(row)
        else:
            reason = f"it does not fit {dtype}" if finite else "it has NaN or infinity"
            report.skipped[f"row {row['row']}"] = reason
    if len(kept) < len(rows):
        write_json(library.path / SKIPPED, report.skipped)
    if kept:
        library.append(map_factors(lambda x: x[usable], stored), kept)
        report.imported += [row["id"] for row in kept]


def _finite(factors: Factors) -> Bool[Tensor, " n"]:
    """Which adapters have finite numbers alone."""
    return torch.stack([x.flatten(1).isfinite().all(1) for f in factors.values() for x in f]).all(0)


@dataclass(frozen=True)
class W2WFiles:
    """Where the files are, and what the small ones say."""

    weights: Path
    dimensions: Path
    table: Path | None
    config: Path | None

    @classmethod
    def find(cls, source: str) -> "W2WFiles":
        """Look below a folder, or fetch them from the hub.

        Raises:
            LibraryError: a file is missing, or the table is a pickle.
        """
        on_hub = repository(source)
        folder = _fetch(on_hub) if on_hub else folder_of(source, "weights2weights", LibraryError)
        pickled = _below(folder, PICKLED_TABLE)
        table = next((path for name in TABLES if (path := _below(folder, name))), None)
        if pickled and not table:
            raise LibraryError(
                f"the table of identities must be {' or '.join(TABLES)}, but {pickled} is a pickle "
                "and may run any code, so it is never loaded here: if you trust it, write "
                f"identity_df.csv beside it, in an environment with pandas, by: {PANDAS}"
            )
        weights, dimensions = _below(folder, WEIGHTS), _below(folder, DIMENSIONS)
        if weights is None or dimensions is None:
            raise LibraryError(
                f"weights2weights must have {DIMENSIONS if weights else WEIGHTS}, but nothing "
                f"below {folder} has that name: download it from the hub "
                f"({HUB}Snapchat/weights2weights)"
            )
        return cls(weights, dimensions, table, _below(folder, CONFIG))

    @cached_property
    def scale(self) -> float:
        """What B·A is multiplied with: alpha / rank."""
        if self.config is None:
            return ALPHA
        stated = read_json(self.config)
        try:
            return float(stated["lora_alpha"]) / float(stated["r"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise FileFormatError(
                f"{self.config} must state lora_alpha and r, but does not ({error!r})"
            ) from error

    @cached_property
    def pieces(self) -> Pieces:
        """Where each factor is within a row."""
        stated = load_small(self.dimensions)
        if not isinstance(stated, dict) or not stated:
            raise FileFormatError(
                f"{self.dimensions} must hold shapes by key, but holds a {type(stated).__name__}"
            )
        return _pieces(stated, self.dimensions)

    @cached_property
    def layout(self) -> Layout:
        """The layout of the adapters."""
        return Layout.from_slots(
            Slot(module, a.shape[1], b.shape[0], a.shape[0])
            for module, (a, b) in self.pieces.items()
        )

    @cached_property
    def shape(self) -> tuple[int, int]:
        """N and D, checked against the shapes.

        Raises:
            FileFormatError: all_weights.pt is no matrix.
            LayoutError: its rows have another width.
        """
        count, width = self._matrix.shape
        if width != self.layout.size:
            raise LayoutError(
                f"rows of {self.weights} must have the {self.layout.size} numbers that "
                f"{self.dimensions.name} tells, but have {width}"
            )
        return count, width

    def factors(self, start: int, stop: int) -> Factors:
        """Raw factors of some rows, with the scale folded into B, in float32."""
        rows = self._matrix.rows(start, stop)
        return {
            module: Factor(a.of(rows), b.of(rows) * self.scale)
            for module, (a, b) in self.pieces.items()
        }

    @cached_property
    def _matrix(self) -> SavedMatrix:
        return SavedMatrix.find(self.weights)


def _fetch(source: str) -> Path:
    """The files of a repository on the hub; a download that was broken off goes on."""
    small = (DIMENSIONS, CONFIG, *TABLES, PICKLED_TABLE)
    patterns = [f"*{_IDENTITIES}/{WEIGHTS}", *(f"files/{name}" for name in small)]
    return fetch(source, "weights2weights", error=LibraryError, allow_patterns=patterns)


def _below(folder: Path, name: str) -> Path | None:
    """The file of that name below a folder; of several, the one of people.

    Raises:
        LibraryError: there are several.
    """
    found = sorted(folder.rglob(name))
    found = [path for path in found if path.parent.name == _IDENTITIES] or found
    if len(found) > 1:
        raise LibraryError(
            f"weights2weights must have one {name}, but {found[0]} and {found[1]} have that name: "
            "name a folder with one"
        )
    return found[0] if found else None


def _pieces(stated: Mapping[Any, Any], path: Path) -> Pieces:
    """Where each factor is, from weights2weights' dictionary."""
    dotted = {module.replace(".", "_"): module for module in published_layout().modules}
    found: dict[str, dict[str, Piece]] = {}
    start = 0
    for key, value in stated.items():
        match = _KEY.fullmatch(key) if isinstance(key, str) and len(key) < 1000 else None
        try:
            size = int(value[0][0])
            rows, columns = (int(side) for side in value[1])
        except (TypeError, ValueError, IndexError, KeyError, ArithmeticError) as error:
            raise FileFormatError(
                f"{path} must give ((numbers,), (rows, columns)) for each key, but gives "
                f"{quoted(value)} for {quoted(key)}"
            ) from error
        if match is None or size != rows * columns or min(rows, columns) < 1:
            raise FileFormatError(
                f"{path} must have keys of LoRA factors and as many numbers as their shapes, but "
                f"has {quoted(key)} with {size} numbers of shape {rows} x {columns}"
            )
        name, side = match.groups()
        module = dotted.get(name.replace(".", "_"), name)
        found.setdefault(module, {})[side] = Piece(start, (rows, columns))
        start += size
    for module, sides in found.items():
        if sides.keys() != {"A", "B"} or sides["A"].shape[0] != sides["B"].shape[1]:
            raise FileFormatError(
                f"{path} must have A and B of each module, of one rank, but not of {module}"
            )
    return {module: (sides["A"], sides["B"]) for module, sides in found.items()}


def _subjects(files: W2WFiles, person: str, embeddings: Path | None) -> list[dict[str, Any]]:
    """A row of the library's table for each row of all_weights.pt, in its order."""
    count, _ = files.shape
    rows = (
        _labelled(files.table, count)
        if files.table
        else [{"id": f"row-{row:06d}"} for row in range(count)]
    )
    for number, row in enumerate(rows):
        row["row"] = number
    for row, key in zip(rows, _people(rows, person, embeddings), strict=True):
        if key is not None:
            row |= {"person": key, "split": split_of(key, _SPLIT_SEED)}
    return rows


def _labelled(path: Path, count: int) -> list[dict[str, Any]]:
    """The table's rows, in the alphanumeric order of the folders' names."""
    try:
        table: pa.Table = pq.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path)
    except (OSError, pa.ArrowException) as error:
        reason = reason_of(error)
        raise FileFormatError(f"{path} must be a readable table, but is not ({reason})") from error
    if "file" not in table.column_names or table.num_rows != count:
        raise LibraryError(
            f"{path} must have a column `file` and a row for each of the {count} adapters, but has "
            f"{table.num_rows} rows and the columns {', '.join(table.column_names)}"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    names = [str(row["file"]) for row in rows]
    if len(set(names)) != count:
        raise LibraryError(f"{path} must name each folder once in `file`, but some occur again")
    # pandas writes its index as a column without a name, or as Parquet's own
    nameless = ("", "__index_level_0__")
    ordered = sorted(zip(names, rows, strict=True), key=lambda pair: pair[0])
    return [
        {"id": name, **{key: row[key] for key in row if key not in (*nameless, "id", "row")}}
        for name, row in ordered
    ]


def _people(
    rows: Sequence[Mapping[str, Any]], person: str, embeddings: Path | None
) -> Iterator[str | None]:
    """Who each row shows: by the table, else by likeness, else unknown."""
    alike = None if embeddings is None else groups_by_likeness(_embeddings(embeddings, len(rows)))
    for number, row in enumerate(rows):
        if row.get(person) is not None:
            yield f"{person} {row[person]}"
        else:
            yield None if alike is None else f"like {rows[alike[number]]['id']}"


def _embeddings(path: Path, count: int) -> Float[Tensor, "n e"]:
    try:
        found = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} must be an .npy file of numbers, but is not") from error
    if found.ndim != 2 or len(found) != count:
        raise LibraryError(
            f"{path} must have one embedding for each of the {count} adapters, but has the shape "
            f"{found.shape}"
        )
    return torch.from_numpy(found)
