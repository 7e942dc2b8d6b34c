"""From a library and a codec to what a hypernetwork is trained on."""

import torch

from lorasynth.codec import Codec
from lorasynth.hypernet.batches import TrainingSet
from lorasynth.library import Library, LibraryView
from lorasynth.library.blocks import row_blocks
from lorasynth.progress import progress

#: Vectors that are encoded at a time; the next are read meanwhile.
_ROWS = 256


@torch.no_grad()
def training_set(library: Library | LibraryView, codec: Codec, column: str | None) -> TrainingSet:
    """Latents of all adapters, with the conditions that are attached as `column` (N, P, m), if any.

    Raises:
        LayoutError: the codec was fitted to another layout.
        LibraryError: the column is absent or damaged, there are fewer than two adapters, or vectors
            have changed since they were written.
    """
    library.require_intact()
    conditions = None if column is None else library.column(column)
    latents = torch.empty(len(library), codec.latents)
    with progress("latents", len(library), shown=len(library) > 16 * _ROWS) as advance:
        for row, vectors in row_blocks(library, _ROWS, torch.device("cpu")):
            latents[row : row + len(vectors)] = codec.encode(vectors)
            advance(len(vectors))
    return TrainingSet(latents=latents, conditions=conditions)
