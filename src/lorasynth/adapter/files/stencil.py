"""Many files of one layout: where each number of a vector goes in a file is found once.

Files of adapters that share layout, metadata and type differ in their numbers and hashes alone, and
a format places numbers and does not change them.  So a format writes a few adapters whose numbers
tell where they come from, and every further file is the same bytes with the numbers of another
vector.  (Not so a transformer's: what is fused there depends on whether numbers of A are equal.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Real
from numpy.typing import NDArray
from torch import Tensor

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.families import family_of
from lorasynth.adapter.files.container import beginning, laid_out
from lorasynth.adapter.files.formats import LoraFormat
from lorasynth.adapter.files.header import described
from lorasynth.adapter.layout import Layout
from lorasynth.core.atomic import write_bytes
from lorasynth.core.errors import LayoutError

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
    _require_finite(vectors)
    targets = [form.target(path) for path in paths]
    stencil = _stencil_for(form, vectors, layout, metadata, _FEW) if form.suffix else None
    if stencil is None:
        adapters = (Adapter.from_vector(vector, layout, metadata) for vector in vectors)
        return [form.write(*pair) for pair in zip(adapters, paths, strict=True)]
    return [stencil.write(*pair) for pair in zip(vectors, targets, strict=True)]


def encode_many(
    form: LoraFormat,
    vectors: Float[Tensor, "n D"],
    layout: Layout,
    metadata: AdapterMetadata,
    few: int | None = None,
) -> list[bytes]:
    """The content of the files that `write_many` writes.

    Args:
        form: of the files.
        vectors: as for `write_many`.
        layout: of the vectors.
        metadata: of all of them.
        few: so many files are not worth a stencil; 0 where more like them will follow.

    Raises:
        LayoutError: a number is not finite.
        FileFormatError: see `LoraFormat.spell`.
    """
    _require_finite(vectors)
    stencil = _stencil_for(form, vectors, layout, metadata, _FEW if few is None else few)
    if stencil is None:
        return [form.encode(Adapter.from_vector(one, layout, metadata)) for one in vectors]
    return [stencil.encode(vector) for vector in vectors]


def _require_finite(vectors: Float[Tensor, "n D"]) -> None:
    if not torch.stack(vectors.aminmax()).isfinite().all():  # quicker than to look at each
        bad = int((~vectors.isfinite()).any(dim=1).nonzero()[0])
        raise LayoutError(
            f"all numbers of an adapter must be finite, but number {bad} of {len(vectors)} has NaN "
            "or infinite ones: synthesise or train it again"
        )


def _stencil_for(
    form: LoraFormat,
    vectors: Float[Tensor, "n D"],
    layout: Layout,
    metadata: AdapterMetadata,
    few: int,
) -> "Stencil | None":
    """What the files of all vectors share; None where they share too little, or are few."""
    candidates = family_of(layout, metadata.header).candidates
    fused = not candidates or any(family.denoiser != "unet" for family in candidates)
    if len(vectors) <= few or fused:
        return None
    stated = tuple(described(metadata, None, 0).items())
    return _stencil(form, layout, _Metadata(metadata, stated), vectors.dtype)


@dataclass(frozen=True)
class _Metadata:
    """Metadata that can be looked up by all that it writes."""

    value: AdapterMetadata = field(compare=False)
    entries: tuple[tuple[str, str], ...]


@lru_cache(maxsize=4)
def _stencil(
    form: LoraFormat, layout: Layout, metadata: _Metadata, dtype: torch.dtype
) -> "Stencil":
    return Stencil.of(form, layout, metadata.value, dtype)


@dataclass(frozen=True, eq=False)
class Stencil:
    """What all files of one format, layout, metadata and type share.

    Attributes:
        dtype: of the numbers in a file.
        text: what describes the tensors.
        header: the other entries.
        constants: the bits of numbers that no vector decides: alphas, and zeros.
        sources: which number of a vector, with the constants behind it, each number of a file is.
    """

    dtype: torch.dtype
    text: bytes
    header: Mapping[str, str]
    constants: NDArray[np.integer]
    sources: NDArray[np.int64]

    @classmethod
    def of(
        cls, form: LoraFormat, layout: Layout, metadata: AdapterMetadata, dtype: torch.dtype
    ) -> "Stencil":
        """Let a format whose output is one file spell adapters that tell where numbers go."""
        size = layout.size

        def spelled(
            numbers: Real[Tensor, " D"],
        ) -> tuple[bytes, Mapping[str, str], NDArray[np.integer]]:
            vector = numbers.to(_BITS[dtype]).view(dtype)
            tensors, header = form.spell(Adapter.from_vector(vector, layout, metadata))
            text, data = laid_out(tensors)
            return text, header, np.frombuffer(data, f"i{dtype.itemsize}")

        text, header, empty = spelled(torch.zeros(size))
        found, factor = np.zeros(len(empty), np.int64), 1
        while factor <= size:
            _, _, seen = spelled(torch.arange(1, size + 1) // factor % _BASE + 1)
            found += np.where(seen != empty, (seen.astype(np.int64) - 1) * factor, 0)
            factor *= _BASE
        fixed = found == 0
        found[fixed] = size + 1 + np.arange(fixed.sum())
        return cls(dtype, text, header, empty[fixed], found - 1)

    def write(self, vector: Float[Tensor, " D"], path: Path) -> Path:
        """Write the file of one vector atomically.

        Raises:
            LorasynthError: the file cannot be written.
        """
        write_bytes(path, self.encode(vector))
        return path

    def encode(self, vector: Float[Tensor, " D"]) -> bytes:
        """The file of one vector."""
        bits = vector.detach().cpu().to(self.dtype).view(_BITS[self.dtype]).numpy()
        numbers = np.concatenate([bits, self.constants])[self.sources]
        data = numbers.view(np.uint8).data
        return b"".join([beginning(self.text, self.header, data), data])
