"""What an encoder is that is trained here.  Imports no torch, so that commands show it at once."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """What a trained encoder is.

    Attributes:
        name: Name of the encoder, which files that depend on it have.
        domain: What its subjects are, in the plural, for messages.
        licence: Of its weights; follows from that of the images.
        trunk: Architecture.
        image_size: Side in pixels of the squares that it looks at.
        width: Dimensions of an embedding.
        features: Width of the last hidden layer, which embedding and detector share.
    """

    name: str = "mine"
    domain: str = "images like those that it was trained on"
    licence: str = "that of whoever trained it"
    trunk: Literal["residual", "separable"] = "residual"
    image_size: Annotated[int, Field(ge=16)] = 64
    width: Annotated[int, Field(ge=2)] = 128
    features: Annotated[int, Field(ge=1)] = 256
