"""What a condition encoder is: a map from pictures of a subject to a point on a sphere."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lorasynth.config import read_json
from lorasynth.errors import ConfigError, PictureError
from lorasynth.pictures.contract import Subject
from lorasynth.pictures.files import middle_square
from lorasynth.registry import Registry
from lorasynth.weights import CONFIG_FILE


@runtime_checkable
class ConditionEncoder(Protocol):
    """Embeds pictures; the embedding of a subject steers synthesis and measures likeness.

    Attributes:
        name: written into every file that depends on the encoder.
        picture_size: side in pixels of the squares that it looks at; others are scaled to it.
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


#: How to load each kind of encoder from a folder, to a device.
ENCODERS: Registry[Callable[[Path, torch.device], ConditionEncoder]] = Registry(
    "condition encoder", "lorasynth.encoders"
)


def saved_config(folder: Path) -> dict[str, Any]:
    """What an encoder says of itself in its folder, without the `kind` that it was found by.

    Raises:
        ConfigError: the folder has no config, or one that cannot be read.
    """
    return {
        name: value for name, value in read_json(folder / CONFIG_FILE).items() if name != "kind"
    }


@runtime_checkable
class PhotoEncoder(ConditionEncoder, Protocol):
    """An encoder that finds what it knows in a photo by itself, as those of faces do.

    Its `embed` and `presence` do so in each picture.  Of a photo that other encoders get, they see
    the middle square.
    """

    def prepare(
        self, photo: UInt8[Tensor, "h w 3"], *, name: str = "the picture", face: int | None = None
    ) -> UInt8[Tensor, "side side 3"]:
        """The square of a photo of any size that is embedded.

        Args:
            photo: the photo.
            name: what to call it in an error.
            face: which one, counted from the left, from 1; None for the largest.

        Raises:
            PictureError: the photo does not show what the encoder knows, or not so many of it.
        """
        ...

    def embed_prepared(self, squares: UInt8[Tensor, "b side side 3"]) -> Float[Tensor, "b m"]:
        """Embed squares that `prepare` gave as unit vectors."""
        ...

    def look(
        self, pictures: UInt8[Tensor, "b h w 3"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
        """Both `embed` and `presence`, after looking into each picture once."""
        ...


#: Photos of one subject, of any sizes.
Photos: TypeAlias = Sequence[UInt8[Tensor, "_ _ 3"]] | UInt8[Tensor, "k h w 3"]

#: Embeds each picture of a subject, with any encoder.
EmbedSubject: TypeAlias = Callable[[ConditionEncoder, Subject], Float[Tensor, "k m"]]


@runtime_checkable
class CompositeEncoder(ConditionEncoder, Protocol):
    """An encoder that leaves pictures to others, and makes its conditions of what they see.

    Attributes:
        parts: the others; none where conditions are facts alone.
    """

    parts: Sequence[ConditionEncoder]

    def of_photos(
        self, photos: Photos, names: Sequence[str], face: int | None, facts: Mapping[str, object]
    ) -> Float[Tensor, " m"]:
        """The condition of one subject, as `subject_embedding` asks for it."""
        ...

    def of_subject(self, subject: Subject, embed: EmbedSubject) -> Float[Tensor, "k m"]:
        """The conditions of a subject that is to be learned from, whose pictures `embed` embeds."""
        ...


#: Side of pictures in which an encoder looks for what it knows.
_SEARCHED = 512


def sphere_mean(embeddings: Float[Tensor, "k m"]) -> Float[Tensor, " m"]:
    """The direction of the mean of unit vectors: one embedding for several pictures."""
    return functional.normalize(embeddings.mean(dim=0), dim=0)


def subject_embedding(
    encoder: ConditionEncoder,
    photos: Photos,
    names: Sequence[str],
    face: int | None = None,
    facts: Mapping[str, object] | None = None,
) -> Float[Tensor, " m"]:
    """Embed one subject from photos of it, and from facts if the encoder knows any.

    Args:
        encoder: any condition encoder.
        photos: of any sizes.
        names: what to call each in an error.
        face: which face of each photo, counted from the left, from 1; None for the largest.
        facts: attributes of the subject.

    Raises:
        PictureError: a photo shows no face, or not so many, or there is none.
        ConfigError: a face is chosen, but the encoder looks for none; or a fact is stated that it
            does not know.
    """
    if isinstance(encoder, CompositeEncoder):
        return encoder.of_photos(photos, names, face, facts or {})
    if facts:
        raise ConfigError(
            f"--attribute is for encoders of attributes, but {encoder.name!r} looks at pictures: "
            "leave it out"
        )
    if not len(photos):
        raise PictureError("a subject needs a picture, but got none: name one")
    if isinstance(encoder, PhotoEncoder):
        return sphere_mean(_embed_photos(encoder, photos, names, face))
    if face is not None:
        raise ConfigError(
            f"--face chooses among faces, but the encoder {encoder.name!r} looks at the middle of "
            "a picture and finds none by itself: leave it out, and crop the picture"
        )
    pictures = torch.stack([middle_square(photo, encoder.picture_size) for photo in photos])
    presence = encoder.presence(pictures)
    for name, probability in zip(names, presence.tolist(), strict=True):
        if probability < 0.5:
            raise PictureError(
                f"a reference picture must show a face, but the encoder {encoder.name!r} finds "
                f"none in {name} (probability {probability:.2f}): crop it to the face and shoulders"
            )
    return sphere_mean(encoder.embed(pictures))


def size_to_embed(encoder: ConditionEncoder) -> int:
    """The side in pixels of pictures that are read only to be embedded."""
    if isinstance(encoder, CompositeEncoder):
        return max(map(size_to_embed, encoder.parts), default=encoder.picture_size)
    return _SEARCHED if isinstance(encoder, PhotoEncoder) else encoder.picture_size


def embed_subject(encoder: ConditionEncoder, subject: Subject) -> Float[Tensor, "k m"]:
    """Embed each picture of a subject that is to be learned from.

    A picture in which an encoder of faces finds none gives way to one in which it does.

    Raises:
        PictureError: an encoder of faces finds none in any of them.
        ConfigError: an encoder of facts does not know one.
    """
    if isinstance(encoder, CompositeEncoder):
        return encoder.of_subject(subject, embed_subject)
    if not isinstance(encoder, PhotoEncoder):
        return encoder.embed(subject.pictures)
    squares = list(_prepared(encoder, subject))
    if not squares:
        raise _shown_nowhere(encoder, subject)
    embedded = encoder.embed_prepared(torch.stack(squares))
    return embedded[torch.arange(len(subject.pictures)) % len(embedded)]


def require_shown(encoder: ConditionEncoder, subject: Subject) -> None:
    """Refuse a subject that `embed_subject` would, after looking at no more than it takes.

    Raises:
        PictureError: an encoder of faces finds none in any of its pictures.
    """
    if isinstance(encoder, CompositeEncoder):
        for part in encoder.parts:
            require_shown(part, subject)
    elif isinstance(encoder, PhotoEncoder) and next(_prepared(encoder, subject), None) is None:
        raise _shown_nowhere(encoder, subject)


def _shown_nowhere(encoder: PhotoEncoder, subject: Subject) -> PictureError:
    return PictureError(
        f"a subject must show a face in one picture or more, but the encoder {encoder.name!r} "
        f"finds none in the {len(subject.pictures)} of {subject.id!r}: use pictures with both eyes "
        "in sight, or leave the subject out"
    )


def _prepared(encoder: PhotoEncoder, subject: Subject) -> Iterator[UInt8[Tensor, "side side 3"]]:
    """The squares of those pictures of a subject that show what an encoder knows."""
    for picture in subject.pictures:
        with suppress(PictureError):
            yield encoder.prepare(picture)


def look(
    encoder: ConditionEncoder, pictures: UInt8[Tensor, "b h w 3"]
) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
    """The embedding of each picture, and the probability that it shows what an encoder knows."""
    if isinstance(encoder, PhotoEncoder):
        return encoder.look(pictures)
    return encoder.embed(pictures), encoder.presence(pictures)


def embed_made(encoder: ConditionEncoder, subject: Subject) -> Float[Tensor, "k m"]:
    """Embed pictures of a subject that were made with its adapter.

    A picture in which the encoder finds nothing gives way to one in which it does; if there is
    none, all count, so that every adapter has a condition.
    """
    if isinstance(encoder, CompositeEncoder):
        return encoder.of_subject(subject, embed_made)
    embedded, presence = look(encoder, subject.pictures)
    shown = (presence >= 0.5).nonzero().flatten()
    return embedded[shown[torch.arange(len(embedded)) % len(shown)]] if len(shown) else embedded


def _embed_photos(
    encoder: PhotoEncoder,
    photos: Photos,
    names: Sequence[str],
    face: int | None = None,
) -> Float[Tensor, "k m"]:
    squares = [
        encoder.prepare(photo, name=name, face=face)
        for photo, name in zip(photos, names, strict=True)
    ]
    return encoder.embed_prepared(torch.stack(squares))
