"""One shard of a library: a folder that appears whole, by one rename, and never changes.

vectors.npy           canonical vectors, N x D (see `vectors`)
factors.safetensors   raw factors as they were trained; a factor that all share is stored once
subjects.parquet      one row per adapter: `id` and free columns
checksums.json        number of rows, and size and SHA-256 of each file
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorasynth.adapter import Factor, Factors, Layout
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.checksums import file_hash
from lorasynth.core.config import read_json
from lorasynth.core.errors import ConfigError, LibraryError
from lorasynth.core.weights import require_small_header
from lorasynth.library.vectors import VectorFile, write_vectors

VECTORS = "vectors.npy"
FACTORS = "factors.safetensors"
SUBJECTS = "subjects.parquet"
CHECKSUMS = "checksums.json"

#: Rows whose numbers are tested at a time by `damages`.
_CHECK_ROWS = 256
#: A shard has thousands.
_MOST_ROWS = 10_000_000


def write_shard(
    path: Path, vectors: Float[Tensor, "n D"], factors: Factors, subjects: pa.Table
) -> None:
    """Write a shard; it appears at `path` whole or not at all.

    Raises:
        LorasynthError: the folder cannot be written, or the disk is full.
    """
    with atomic_directory(path) as folder:
        write_vectors(folder / VECTORS, vectors)
        save_file(_to_tensors(factors), folder / FACTORS)
        pq.write_table(subjects, folder / SUBJECTS)
        files = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
            for name in (VECTORS, FACTORS, SUBJECTS)
        }
        write_json(folder / CHECKSUMS, {"rows": len(vectors), "files": files})


class Shard:
    """A complete shard.  Its files are opened when they are first needed.

    Raises:
        LibraryError: a file cannot be read (from every property and method).
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout

    @cached_property
    def count(self) -> int:
        """Number of adapters."""
        return int(self._stated["rows"])

    @cached_property
    def vectors(self) -> VectorFile:
        """Canonical vectors (count, D), on disk."""
        try:
            found = VectorFile(self.path / VECTORS)
        except LibraryError as error:
            raise self._damaged(VECTORS, error) from error
        if (len(found), found.width) != (self.count, self.layout.size):
            raise self._damaged(VECTORS, f"it has the shape {(len(found), found.width)}")
        return found

    @property
    def fingerprint(self) -> str:
        """Changes when a file of the shard is written anew."""
        stated = self._stated["files"].get(VECTORS, {})
        return f"{self.path.name} {self.count} {stated.get('sha256')}"

    @cached_property
    def subjects(self) -> pa.Table:
        """The table of subjects."""
        try:
            table = pq.read_table(self.path / SUBJECTS)
            # until 0.1 images were called pictures
            names = ["images" if name == "pictures" else name for name in table.column_names]
            return table.rename_columns(names)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(SUBJECTS, error) from error

    def factors(self, rows: Sequence[int]) -> Factors:
        """Raw factors of some rows, stacked."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)

        def pick(tensor: Tensor) -> Tensor:
            return tensor.expand(self.count, -1, -1)[index]

        try:
            require_small_header(self.path / FACTORS)
            with safe_open(self.path / FACTORS, framework="pt") as file:
                return {
                    module: Factor(
                        pick(file.get_tensor(f"{module}.A")), pick(file.get_tensor(f"{module}.B"))
                    )
                    for module in self.layout.modules
                }
        except (OSError, SafetensorError, RuntimeError, IndexError) as error:
            raise self._damaged(FACTORS, error) from error

    def require_intact(self) -> None:
        """Compare the vectors with their checksum; a shard never changes, so once is enough."""
        if self._change_of_vectors:
            raise self._damaged(VECTORS, f"it {self._change_of_vectors}")

    @cached_property
    def _change_of_vectors(self) -> str | None:
        return self._file_problem(VECTORS, self._stated["files"].get(VECTORS, {}))

    def damages(self) -> Iterator[str]:
        """What is wrong with the shard, one line each; nothing if it is intact."""
        try:
            stated = dict(self._stated["files"])
            for name in (VECTORS, FACTORS, SUBJECTS):
                problem = self._file_problem(name, stated.get(name, {}))
                if problem:
                    yield f"shard {self.path.name}: {name} {problem}"
                    return
            if self.subjects.num_rows != self.count:
                yield (
                    f"shard {self.path.name}: {SUBJECTS} has {self.subjects.num_rows} rows for "
                    f"{self.count} adapters"
                )
            for start in range(0, self.count, _CHECK_ROWS):
                rows = torch.empty(min(_CHECK_ROWS, self.count - start), self.layout.size)
                self.vectors.read_block(start, 0, rows)
                if not rows.isfinite().all():
                    yield f"shard {self.path.name}: {VECTORS} holds non-finite values"
                    return
        except (LibraryError, ValueError, TypeError) as error:
            yield str(error)

    @cached_property
    def _stated(self) -> Mapping[str, Any]:
        try:
            stated = read_json(self.path / CHECKSUMS)
        except ConfigError as error:
            raise self._damaged(CHECKSUMS, error) from error
        if not isinstance(stated.get("rows"), int) or not isinstance(stated.get("files"), dict):
            raise self._damaged(CHECKSUMS, "it lacks rows or files")
        if not all(isinstance(one, dict) for one in stated["files"].values()):
            raise self._damaged(CHECKSUMS, "it garbles files")
        if not 0 <= stated["rows"] <= _MOST_ROWS:  # what counts the rows would take all memory
            raise self._damaged(CHECKSUMS, f"it states {stated['rows']} rows")
        return stated

    def _file_problem(self, name: str, stated: Mapping[str, Any]) -> str | None:
        path = self.path / name
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != stated.get("bytes"):
            return f"has {size} bytes, but was written with {stated.get('bytes')}"
        if file_hash(path) != stated.get("sha256"):
            return "has changed since it was written (its SHA-256 differs)"
        return None

    def _damaged(self, name: str, reason: object) -> LibraryError:
        first = (str(reason).splitlines() or [type(reason).__name__])[0]
        return LibraryError(
            f"shard {self.path.name}: {name} of {self.path} cannot be used ({first}): restore it "
            "from a copy or delete the shard"
        )


def _to_tensors(factors: Factors) -> dict[str, Tensor]:
    tensors = {}
    for module, factor in factors.items():
        for name, tensor in zip("AB", factor, strict=True):
            shared = bool((tensor == tensor[:1]).all())
            tensors[f"{module}.{name}"] = (tensor[:1] if shared else tensor).clone().contiguous()
    return tensors
