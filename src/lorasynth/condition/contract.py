"""What a condition encoder is: a map from pictures of a subject to a point on a sphere."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lorasynth.errors import ConfigError, PictureError
from lorasynth.pictures.contract import Subject
from lorasynth.pictures.files import middle_square
from lorasynth.registry import Registry


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


#: How to load each kind of encoder from a folder.
ENCODERS: Registry[Callable[[Path], ConditionEncoder]] = Registry(
    "condition encoder", "lorasynth.encoders"
)


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


@runtime_checkable
class DescribedEncoder(ConditionEncoder, Protocol):
    """An encoder of facts about a subject, beside what another encoder sees in its pictures.

    Attributes:
        identity: the other encoder; None where conditions are facts alone.
    """

    identity: ConditionEncoder | None

    def describe(
        self, embeddings: Float[Tensor, "k m"] | None, facts: Mapping[str, object]
    ) -> Float[Tensor, "k w"]:
        """Conditions of what is seen and what is known; one row where nothing is seen.

        Facts of other kinds than the encoder's are no part of the condition.

        Raises:
            ConfigError: a fact is impossible, or nothing is seen or known.
        """
        ...

    def require_known(self, facts: Iterable[str]) -> None:
        """Check that all facts are of the encoder's kinds.

        Raises:
            ConfigError: names the first that is not.
        """
        ...


@runtime_checkable
class ComposedEncoder(ConditionEncoder, Protocol):
    """Several encoders that look at one subject, each as it does alone.

    Attributes:
        parts: the encoders.
    """

    parts: Sequence[ConditionEncoder]

    def join(self, embeddings: Sequence[Float[Tensor, "k _"]]) -> Float[Tensor, "k m"]:
        """Conditions of what each part sees."""
        ...


#: Side of pictures in which an encoder looks for what it knows.
_SEARCHED = 512


def sphere_mean(embeddings: Float[Tensor, "k m"]) -> Float[Tensor, " m"]:
    """The direction of the mean of unit vectors: one embedding for several pictures."""
    return functional.normalize(embeddings.mean(dim=0), dim=0)


def subject_embedding(
    encoder: ConditionEncoder,
    photos: Sequence[UInt8[Tensor, "_ _ 3"]] | UInt8[Tensor, "k h w 3"],
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
    if isinstance(encoder, ComposedEncoder):
        rows = [
            subject_embedding(part, photos, names, *_asked_of(part, encoder, face, facts))[None]
            for part in encoder.parts
        ]
        return encoder.join(rows)[0]
    if isinstance(encoder, DescribedEncoder):
        encoder.require_known(facts or {})
        seen = None
        if encoder.identity is not None and len(photos):
            seen = subject_embedding(encoder.identity, photos, names, face)[None]
        return encoder.describe(seen, facts or {})[0]
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


def _asked_of(
    part: ConditionEncoder,
    whole: ComposedEncoder,
    face: int | None,
    facts: Mapping[str, object] | None,
) -> tuple[int | None, Mapping[str, object] | None]:
    """The face and the facts for one of several encoders: what is for others is left out.

    Where no part can use them, each is asked, and the first refuses.
    """

    def others(kind: type) -> bool:
        return not isinstance(part, kind) and any(isinstance(p, kind) for p in whole.parts)

    return None if others(PhotoEncoder) else face, None if others(DescribedEncoder) else facts


def size_to_embed(encoder: ConditionEncoder) -> int:
    """The side in pixels of pictures that are read only to be embedded."""
    if isinstance(encoder, ComposedEncoder):
        return max(map(size_to_embed, encoder.parts))
    if isinstance(encoder, DescribedEncoder) and encoder.identity is not None:
        return size_to_embed(encoder.identity)
    return _SEARCHED if isinstance(encoder, PhotoEncoder) else encoder.picture_size


def embed_subject(encoder: ConditionEncoder, subject: Subject) -> Float[Tensor, "k m"]:
    """Embed each picture of a subject that is to be learned from.

    An encoder of facts beside pictures gives each in three: both, the picture alone, the facts
    alone, so that what learns from them needs neither.

    Raises:
        PictureError: an encoder of faces finds none in one of them.
        ConfigError: an encoder of facts does not know one.
    """
    if isinstance(encoder, ComposedEncoder):
        return encoder.join([embed_subject(part, subject) for part in encoder.parts])
    if isinstance(encoder, DescribedEncoder):
        return _with_facts(encoder, subject, embed_subject)
    if not isinstance(encoder, PhotoEncoder):
        return encoder.embed(subject.pictures)
    count = len(subject.pictures)
    names = [f"picture {i} of {count} of the subject {subject.id!r}" for i in range(1, count + 1)]
    return _embed_photos(encoder, subject.pictures, names)


def embed_made(encoder: ConditionEncoder, subject: Subject) -> Float[Tensor, "k m"]:
    """Embed pictures of a subject that were made with its adapter.

    A picture in which the encoder finds nothing gives way to one in which it does; if there is
    none, all count, so that every adapter has a condition.
    """
    if isinstance(encoder, ComposedEncoder):
        return encoder.join([embed_made(part, subject) for part in encoder.parts])
    if isinstance(encoder, DescribedEncoder):
        return _with_facts(encoder, subject, embed_made)
    embedded = encoder.embed(subject.pictures)
    shown = (encoder.presence(subject.pictures) >= 0.5).nonzero().flatten()
    return embedded[shown[torch.arange(len(embedded)) % len(shown)]] if len(shown) else embedded


def _with_facts(
    encoder: DescribedEncoder,
    subject: Subject,
    embed: Callable[[ConditionEncoder, Subject], Float[Tensor, "k m"]],
) -> Float[Tensor, "k m"]:
    facts = encoder.describe(None, subject.attributes)
    if encoder.identity is None:
        return facts
    seen = embed(encoder.identity, subject)
    both, alone = encoder.describe(seen, subject.attributes), encoder.describe(seen, {})
    return torch.cat([both, alone, facts.expand(len(seen), -1)])


def _embed_photos(
    encoder: PhotoEncoder,
    photos: Sequence[UInt8[Tensor, "_ _ 3"]] | UInt8[Tensor, "k h w 3"],
    names: Sequence[str],
    face: int | None = None,
) -> Float[Tensor, "k m"]:
    squares = [
        encoder.prepare(photo, name=name, face=face)
        for photo, name in zip(photos, names, strict=True)
    ]
    return encoder.embed_prepared(torch.stack(squares))
