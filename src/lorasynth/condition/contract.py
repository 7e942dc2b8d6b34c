"""What a condition encoder is: a map from photos of a subject to a point on a sphere."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lorasynth.core.config import read_json
from lorasynth.core.errors import ConfigError, ImageError
from lorasynth.core.registry import Registry
from lorasynth.core.weights import CONFIG_FILE
from lorasynth.images.contract import Photos, Subject
from lorasynth.images.framing import Box, Sides, framed

#: From this probability on a photo shows what an encoder knows.
SHOWN = 0.5


class Seen(NamedTuple):
    """What an encoder sees in k photos, after looking at each once.

    Attributes:
        embeddings: a unit vector of each.
        presence: the probability that each shows what the encoder knows.
        boxes: where, of encoders that find faces; None where no face was found.
    """

    embeddings: Float[Tensor, "k s"]
    presence: Float[Tensor, " k"]
    boxes: Sequence[Box | None]


class ConditionEncoder(ABC):
    """Embeds photos; the embedding of a subject steers synthesis and measures identity similarity.

    Attributes:
        name: written into every file that depends on the encoder.
        image_size: side in pixels of the squares that it looks at; others are scaled to it.
        width: of a condition.
        licence: of the weights.
        domain: what it knows, in the plural, for messages.
        advice: what to do with a photo in which it finds nothing.
        looks: whether it looks at photos at all.
        finds_faces: whether it finds faces by itself, so that one of several can be chosen.
        attributes: facts about a subject that are part of a condition, with their values.
    """

    name: str
    image_size: int
    width: int
    licence: str
    domain: str = "images of anything"
    advice: str = "use another photo"
    looks: bool = True
    finds_faces: bool = False
    attributes: Mapping[str, Sequence[str]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights, hashed once; embeddings of other weights are not comparable."""
        return self._fingerprint()

    @abstractmethod
    def _fingerprint(self) -> str: ...

    @abstractmethod
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """The condition of each image, a unit vector, whether it shows what is known or not."""

    def presence(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        """The probability that each image shows what the encoder knows; 1 where it looks not."""
        return torch.ones(len(images))

    def look(
        self, images: UInt8[Tensor, "b h w 3"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
        """What `embed` and `presence` say, at the cost of one where a network says both."""
        return self.embed(images), self.presence(images)

    def see(
        self,
        photos: Photos,
        *,
        names: Sequence[str] | None = None,  # noqa: ARG002  for encoders that find faces
        face: int | None = None,  # noqa: ARG002
    ) -> Seen:
        """Look at photos of any sizes, at each once.

        Args:
            photos: k photos.
            names: what to call each in an error.
            face: which face of each, counted from the left, from 1; None for the largest.

        Raises:
            ImageError: a photo has fewer faces.
        """
        squares = torch.stack([framed(photo, self.image_size) for photo in photos])
        return Seen(*self.look(squares), [None] * len(photos))

    def conditions(
        self,
        seen: Float[Tensor, "k s"] | None,
        facts: Mapping[str, object],  # noqa: ARG002  for encoders that know some
    ) -> Float[Tensor, "j m"]:
        """The conditions that a subject is learned with, one or more for each photo.

        Args:
            seen: embeddings of its photos; None for a subject without photos.
            facts: what is known of it; encoders without `attributes` pass them over.
        """
        assert seen is not None, "the caller has photos for an encoder that needs them"
        return seen

    def condition(
        self,
        seen: Float[Tensor, "k s"] | None,
        facts: Mapping[str, object],  # noqa: ARG002  for encoders that know some
    ) -> Float[Tensor, " m"]:
        """The one condition of all photos and facts of a subject: the mean on the sphere."""
        assert seen is not None, "the caller has photos for an encoder that needs them"
        return sphere_mean(seen)

    @property
    def seen_width(self) -> int:
        """Of an embedding that `see` gives; `width` where facts are no part of a condition."""
        return self.width

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what is needed to load it again, with a `config.json` that names its `kind`."""

    def missing(self, photo: str, presence: float) -> str:
        """Says that a photo does not show what is known."""
        return (
            f"a reference photo must show what the encoder {self.name!r} knows, {self.domain}, but "
            f"it finds none in {photo} (probability {presence:.2f}): {self.advice}"
        )


#: How to load each kind of encoder from a folder, to a device.
ENCODERS: Registry[Callable[[Path, torch.device], ConditionEncoder]] = Registry(
    "condition encoder",
    "lorasynth.encoders",
    "lorasynth.condition.composite",
    "lorasynth.condition.faces.encoder",
    "lorasynth.condition.trained",
    "lorasynth.condition.vision",
)


def saved_config(folder: Path) -> dict[str, Any]:
    """What an encoder says of itself in its folder, without the `kind` that it was found by.

    Raises:
        ConfigError: the folder has no config, or one that cannot be read.
    """
    return {
        name: value for name, value in read_json(folder / CONFIG_FILE).items() if name != "kind"
    }


def as_word(text: str) -> str:
    """A text as an encoder's name: letters, digits and hyphens."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def sphere_mean(embeddings: Float[Tensor, "k m"]) -> Float[Tensor, " m"]:
    """The direction of the mean of unit vectors: one embedding for several photos."""
    return functional.normalize(embeddings.mean(dim=0), dim=0)


def subject_condition(
    encoder: ConditionEncoder,
    photos: Photos,
    names: Sequence[str],
    face: int | None = None,
    facts: Mapping[str, object] | None = None,
) -> Float[Tensor, " m"]:
    """The condition of one subject from photos of it, and from facts if the encoder knows any.

    Args:
        encoder: any condition encoder.
        photos: of any sizes; may be none where facts are stated.
        names: what to call each in an error.
        face: which face of each photo, counted from the left, from 1; None for the largest.
        facts: attributes of the subject.

    Raises:
        ImageError: a photo does not show what the encoder knows, or not so many faces, or there
            is none.
        ConfigError: a face is chosen, but the encoder finds none by itself; or a fact is stated
            that it does not know.
    """
    facts = facts or {}
    for name in facts.keys() - encoder.attributes.keys():
        raise ConfigError(
            f"--attribute must be of {', '.join(encoder.attributes)}, but the encoder knows no "
            f"attribute {name!r}"
            if encoder.attributes
            else f"--attribute is for encoders of attributes, but {encoder.name!r} looks at "
            "photos: leave it out"
        )
    if face is not None and len(photos) and not encoder.finds_faces:
        raise ConfigError(
            f"--face chooses among faces, but the encoder {encoder.name!r} finds none by itself: "
            "leave it out, and crop the photo"
        )
    if not len(photos) and not encoder.attributes:
        raise ImageError("a subject needs a photo, but got none: name one")
    if not len(photos) or not encoder.looks:
        return encoder.condition(None, facts)
    seen = encoder.see(photos, names=names, face=face)
    for name, presence in zip(names, seen.presence.tolist(), strict=True):
        if presence < SHOWN:
            raise ImageError(encoder.missing(name, presence))
    return encoder.condition(seen.embeddings, facts)


def seen_in(encoder: ConditionEncoder, subject: Subject) -> Seen:
    """What an encoder sees in a subject's photos: carried along, or looked at now."""
    carried: Seen | None = subject.seen.get(encoder.fingerprint)
    return encoder.see(subject.photos) if carried is None else carried


def subject_conditions(
    encoder: ConditionEncoder, subject: Subject, *, made: bool = False
) -> Float[Tensor, "j m"]:
    """The conditions that a subject is learned with, from its photos and attributes.

    A photo in which the encoder finds nothing gives way to one in which it does.

    Args:
        encoder: any condition encoder.
        subject: may have no photos, where the encoder knows attributes.
        made: the photos were made with the subject's adapter: if the encoder finds nothing in any,
            all count, so that every adapter has a condition.

    Raises:
        ImageError: an encoder finds nothing in any of its photos.
        ConfigError: an encoder of facts does not know one.
    """
    if not encoder.looks or not len(subject.photos):
        return encoder.conditions(None, subject.attributes)
    seen = seen_in(encoder, subject)
    shown = (seen.presence >= SHOWN).nonzero().flatten()
    if not len(shown) and made:
        shown = torch.arange(len(seen.presence))
    if not len(shown):
        raise ImageError(
            f"a subject must show in one photo or more what the encoder {encoder.name!r} knows, "
            f"{encoder.domain}, but it finds none in the {len(seen.presence)} of {subject.id!r}: "
            f"{encoder.advice}, or leave the subject out"
        )
    chosen = seen.embeddings[shown[torch.arange(len(seen.presence)) % len(shown)]]
    return encoder.conditions(chosen, subject.attributes)


def framed_subject(
    subject: Subject, size: int | Sequence[Sides], encoders: Sequence[ConditionEncoder] = ()
) -> Subject:
    """A subject as squares of one size, or as rectangles, with what encoders saw in whole photos.

    The squares are around the face that the first encoder of faces finds (`framing.frame`).  The
    encoders see whole photos, as they do when a synthesizer is used.

    Args:
        subject: with photos of any sizes.
        size: side of the squares in pixels, or the sides to choose of (`framing.framed`).
        encoders: that the subject will be embedded with.

    Raises:
        ImageError: none of its photos shows what an encoder knows.
    """
    looking = {encoder.fingerprint: encoder for encoder in encoders if encoder.looks}
    seen: dict[str, Seen] = {name: one.see(subject.photos) for name, one in looking.items()}
    carrying = replace(subject, seen=seen)
    for encoder in looking.values():
        subject_conditions(encoder, carrying)  # refuses a subject in which it finds nothing
    found = [one.boxes for one in seen.values() if any(one.boxes)]
    boxes: Sequence[Box | None] = found[0] if found else [None] * len(subject.photos)
    pairs = zip(subject.photos, boxes, strict=True)
    cut = [framed(photo, size, box) for photo, box in pairs]
    alike = len({photo.shape for photo in cut}) == 1
    return replace(carrying, photos=torch.stack(cut) if alike else cut)
