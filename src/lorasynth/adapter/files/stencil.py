"""Many files of one layout: where each number of a vector goes in a file is found once.

Files of adapters that share layout, metadata and type differ in nothing but their numbers, which a
format places and does not change.  So a format writes a few adapters whose numbers tell where they
come from, and every further file is the same bytes with the numbers of another vector.  (Not so a
transformer's: what is fused there depends on whether numbers of A are equal.)
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Real
from numpy.typing import NDArray
from torch import Tensor

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.families import is_transformer
from lorasynth.adapter.files._safetensors import from_header, to_header
from lorasynth.adapter.files.contract import LoraFormat
from lorasynth.adapter.layout import Layout
from lorasynth.atomic import write_bytes
from lorasynth.errors import LayoutError

#: Base of the digits that numbers are told apart by; as the bits of a half, each is a finite one.
_BASE = 30_000

#: Files of which a stencil, itself made of three, is not worth its while.
_FEW = 4

_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def write_many(
    form: LoraFormat,
    vectors: Float[Tensor, "n D"],
    layout: Layout,
    metadata: AdapterMetadata,
    paths: Sequence[Path],
) -> list[Path]:
    """Write n adapters as `form.write` does, but many in less time; returns what was written.

    Args:
        form: of the files.
        vectors: of the adapters, in float32, float16 or bfloat16.
        layout: of the vectors.
        metadata: of all of them.
        paths: one for each.

    Raises:
        LayoutError: a number is not finite.
        LorasynthError: see `LoraFormat.write`.
    """
    if not torch.stack(vectors.aminmax()).isfinite().all():  # quicker than to look at each
        bad = int((~vectors.isfinite()).any(dim=1).nonzero()[0])
        raise LayoutError(
            f"all numbers of an adapter must be finite, but number {bad} of {len(vectors)} has NaN "
            "or infinite ones: synthesise or train it again"
        )
    targets = [form.target(path) for path in paths]
    if len(targets) <= _FEW or not form.suffix or is_transformer(layout.modules):
        adapters = (Adapter.from_vector(vector, layout, metadata) for vector in vectors)
        return [form.write(*pair) for pair in zip(adapters, paths, strict=True)]
    stencil = _stencil(type(form), layout, tuple(to_header(metadata).items()), vectors.dtype)
    return [stencil.write(*pair) for pair in zip(vectors, targets, strict=True)]


@lru_cache(maxsize=4)
def _stencil(
    form: type[LoraFormat],
    layout: Layout,
    header: tuple[tuple[str, str], ...],
    dtype: torch.dtype,
) -> "Stencil":
    return Stencil.of(form(), layout, from_header(dict(header)), dtype)


@dataclass(frozen=True, eq=False)
class Stencil:
    """What all files of one format, layout, metadata and type share.

    Attributes:
        dtype: of the numbers in a file.
        header: what comes before the numbers.
        constants: the bits of numbers that no vector decides: alphas, and zeros.
        sources: which number of a vector, with the constants behind it, each number of a file is.
    """

    dtype: torch.dtype
    header: bytes
    constants: NDArray[np.integer]
    sources: NDArray[np.int64]

    @classmethod
    def of(
        cls, form: LoraFormat, layout: Layout, metadata: AdapterMetadata, dtype: torch.dtype
    ) -> "Stencil":
        """Let a format whose output is one file write files that tell where numbers go."""
        size = layout.size

        def written(numbers: Real[Tensor, " D"]) -> tuple[bytes, NDArray[np.integer]]:
            vector = numbers.to(_BITS[dtype]).view(dtype)
            return _written(form, Adapter.from_vector(vector, layout, metadata))

        header, empty = written(torch.zeros(size))
        found, factor = np.zeros(len(empty), np.int64), 1
        while factor <= size:
            _, seen = written(torch.arange(1, size + 1) // factor % _BASE + 1)
            found += np.where(seen != empty, (seen.astype(np.int64) - 1) * factor, 0)
            factor *= _BASE
        fixed = found == 0
        found[fixed] = size + 1 + np.arange(fixed.sum())
        return cls(dtype, header, empty[fixed], found - 1)

    def write(self, vector: Float[Tensor, " D"], path: Path) -> Path:
        """Write the file of one vector atomically.

        Raises:
            LorasynthError: the file cannot be written.
        """
        bits = vector.detach().cpu().to(self.dtype).view(_BITS[self.dtype]).numpy()
        numbers = np.concatenate([bits, self.constants])[self.sources]
        write_bytes(path, b"".join([self.header, numbers.data]))
        return path


def _written(form: LoraFormat, adapter: Adapter) -> tuple[bytes, NDArray[np.integer]]:
    """What a file has before its numbers, and their bits."""
    size = next(iter(adapter.factors.values())).A.dtype.itemsize
    with tempfile.TemporaryDirectory() as folder:
        data = form.write(adapter, Path(folder) / f"adapter{form.suffix}").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return data[:start], np.frombuffer(data, f"i{size}", offset=start)
