"""Options of commands that work on adapters in a synthesizer's latents."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorasynth.edit import LatentSpace
    from lorasynth.synthesizer import Synthesizer

Where = Annotated[
    str, typer.Option(help="Synthesizer, for its codec: a folder, or hub:owner/name.")
]
Known = Annotated[
    Path, typer.Option("--library", help="Library: of adapters, or of latents as in a bundle.")
]


def space_of(synthesizer: str, library: Path) -> "tuple[Synthesizer, LatentSpace]":
    """Load a synthesizer, and the latents of its codec with those of a library.

    Raises:
        LorasynthError: one of them is damaged, or they do not belong together.
    """
    from lorasynth.edit import LatentLibrary, LatentSpace
    from lorasynth.synthesizer import Synthesizer

    loaded = Synthesizer.from_pretrained(synthesizer)
    known = LatentLibrary.open(library, loaded.codec)
    return loaded, LatentSpace(loaded.layout, loaded.codec, known)
