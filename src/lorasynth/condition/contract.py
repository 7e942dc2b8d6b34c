"""What a condition encoder is: a map from pictures of a subject to a point on a sphere."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lorasynth.config import read_json
from lorasynth.errors import BundleError, ConfigError, PictureError
from lorasynth.registry import Registry


@runtime_checkable
class ConditionEncoder(Protocol):
    """Embeds pictures; the embedding of a subject steers synthesis and measures likeness.

    Attributes:
        name: written into every file that depends on the encoder.
        picture_size: pictures are given as squares of this many pixels.
        width: of an embedding.
        licence: of the weights.
        fingerprint: identifies the weights; embeddings of other weights are not comparable.
    """

    name: str
    picture_size: int
    width: int
    licence: str

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def embed(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """Embed each picture as a unit vector, whether it holds a face or not."""
        ...

    def presence(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        """The probability that each picture shows what the encoder knows (a face)."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is needed to load it again, with a `config.json` that names its `kind`."""
        ...


#: How to load each kind of encoder from a folder.
ENCODERS: Registry[Callable[[Path], ConditionEncoder]] = Registry(
    "condition encoder", "lorasynth.encoders"
)


def load_encoder(folder: Path) -> ConditionEncoder:
    """Load an encoder of any kind that `save` wrote.

    Raises:
        BundleError: the folder is not a whole encoder, or of a kind that is not installed.
    """
    try:
        return ENCODERS.get(str(read_json(folder / "config.json").get("kind")))(folder)
    except ConfigError as error:
        raise BundleError(
            f"{folder} must hold a condition encoder, but does not: {error}"
        ) from error


def sphere_mean(embeddings: Float[Tensor, "k m"]) -> Float[Tensor, " m"]:
    """The direction of the mean of unit vectors: one embedding for several pictures."""
    return functional.normalize(embeddings.mean(dim=0), dim=0)


def subject_embedding(
    encoder: ConditionEncoder, pictures: UInt8[Tensor, "k h w 3"], names: Sequence[str]
) -> Float[Tensor, " m"]:
    """Embed one subject from k pictures of it.

    Args:
        encoder: any condition encoder.
        pictures: the pictures.
        names: what to call each picture in an error.

    Raises:
        PictureError: a picture shows no face.
    """
    presence = encoder.presence(pictures)
    for name, probability in zip(names, presence.tolist(), strict=True):
        if probability < 0.5:
            raise PictureError(
                f"a reference picture must show a face, but the encoder {encoder.name!r} finds "
                f"none in {name} (probability {probability:.2f}): crop it to the face and shoulders"
            )
    return sphere_mean(encoder.embed(pictures))
