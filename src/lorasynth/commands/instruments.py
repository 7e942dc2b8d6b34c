"""Options that say what makes images and what judges them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorasynth.evaluation.trial import Instruments

Encoder = Annotated[
    str, typer.Option(help="Encoder, by folder or name, whose embeddings are conditions.")
]
Second = Annotated[str, typer.Option(help="Encoder, by folder or name, that only measures.")]
Judge = Annotated[Path, typer.Option(help="Judge of attributes.")]
Split = Annotated[str, typer.Option(help="Subjects' split: validation, or test.")]


def instruments_of(
    base: str,
    encoder: str,
    second: str,
    judge: Path,
    device: str,
    condition: str | None = None,
) -> "Instruments":
    """Load them from their folders.

    Raises:
        LorasynthError: one of them is damaged or absent.
    """
    from lorasynth.avatars.judge import AttributeJudge
    from lorasynth.base import BaseModel
    from lorasynth.condition import load_encoder
    from lorasynth.core.device import pick_device
    from lorasynth.evaluation.trial import Instruments

    on = pick_device(device)
    return Instruments(
        base=BaseModel.load(base, on),
        encoder=load_encoder(encoder, on),
        second=load_encoder(second, on),
        judge=AttributeJudge.load(judge),
        condition=None if condition is None else load_encoder(condition, on),
    )
