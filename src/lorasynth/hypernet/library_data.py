"""From a library and a codec to what a hypernetwork is trained on."""

from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.codec import Codec
from lorasynth.core.errors import LibraryError, LorasynthError
from lorasynth.core.progress import progress
from lorasynth.core.weights import fingerprint
from lorasynth.hypernet.batches import TrainingSet
from lorasynth.library import Library
from lorasynth.library.blocks import row_blocks
from lorasynth.library.columns import read_column, write_column

#: Folder of a library for the latents of its adapters, a file for each codec.
LATENTS = "latents"

#: Vectors that are encoded at a time; the next are read meanwhile.
_ROWS = 256


def training_set(library: Library, codec: Codec, column: str) -> TrainingSet:
    """Latents of all adapters, with the conditions that are attached as `column` (N, P, m).

    Raises:
        LayoutError: the codec was fitted to another layout.
        LibraryError: the column is absent or damaged, there are fewer than two adapters, or vectors
            have changed since they were written.
    """
    library.require_intact()  # also if latents are kept: they are of the vectors as they were
    return TrainingSet(latents=latents_of(library, codec), conditions=library.column(column))


def latents_of(library: Library, codec: Codec) -> Float[Tensor, "N k"]:
    """Latents of all adapters; those of a whole library are computed once and kept in it.

    They lie in its folder `latents`, under the codec's fingerprint, and are found stale where
    adapters were appended since.  A library that cannot be written (a read-only disk, another
    writer) is encoded anew each time.

    Raises:
        LayoutError: the codec was fitted to another layout.
        LibraryError: vectors have changed since they were written.
    """
    whole = library.whole
    kept = whole.path / LATENTS / f"{fingerprint(codec)}.safetensors"
    try:
        latents = read_column(kept, whole.ids)
    except LibraryError:  # not there yet, or of fewer adapters
        latents = _encoded(whole, codec)
        with suppress(LorasynthError, OSError), whole.locked():
            write_column(kept, latents, whole.ids)
    return latents[torch.from_numpy(library.rows)]


@torch.no_grad()
def _encoded(library: Library, codec: Codec) -> Float[Tensor, "N k"]:
    library.require_intact()
    latents = torch.empty(len(library), codec.latents)
    with progress("latents", len(library), shown=len(library) > 16 * _ROWS) as advance:
        for row, vectors in row_blocks(library, _ROWS, torch.device("cpu")):
            latents[row : row + len(vectors)] = codec.encode(vectors)
            advance(len(vectors))
    return latents
