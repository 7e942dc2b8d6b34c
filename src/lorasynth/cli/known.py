"""Options of commands that work on adapters in a synthesizer's latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from lorasynth.adapter import Adapter, AdapterMetadata
    from lorasynth.experiments.latent_library import LatentLibrary
    from lorasynth.synthesizer import Synthesizer

Where = Annotated[
    str, typer.Option(help="Synthesizer, for its codec: a folder, or hub:owner/name.")
]
Known = Annotated[
    Path, typer.Option("--library", help="Library: of adapters, or of latents as in a bundle.")
]


class Space(NamedTuple):
    """Where adapters are points: a synthesizer's latents, and a library's adapters in them."""

    synthesizer: "Synthesizer"
    library: "LatentLibrary"

    def vectors(self, adapters: "Sequence[Adapter]") -> "Tensor":
        """Canonical vectors of LoRA files, in the library's gauge.

        Raises:
            LayoutError: one is of another layout, or the gauge refuses it.
        """
        from lorasynth.adapter import stack

        stacked = stack([adapter.factors for adapter in adapters])
        return self.library.vectors(stacked, self.synthesizer.layout)

    def adapters(self, vectors: "Tensor", metadata: "AdapterMetadata") -> "list[Adapter]":
        """An adapter of each row."""
        from lorasynth.adapter import Adapter

        layout = self.synthesizer.layout
        return [Adapter.from_vector(vector, layout, metadata) for vector in vectors]


def space_of(synthesizer: str, library: Path) -> Space:
    """Load both.

    Raises:
        LorasynthError: one of them is damaged, or they do not belong together.
    """
    from lorasynth.experiments.latent_library import LatentLibrary
    from lorasynth.synthesizer import Synthesizer

    loaded = Synthesizer.from_pretrained(synthesizer)
    return Space(loaded, LatentLibrary.open(library, loaded.codec))
