"""The subjects of a fleet as the base model sees them; each image and caption is encoded once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lorasynth.base import BaseModel, Texts
from lorasynth.condition import framed_subject
from lorasynth.core.errors import CollectionError
from lorasynth.engine.draws import Draw
from lorasynth.images import Subject


@dataclass(frozen=True)
class EncodedSubjects:
    """Latents and text embeddings of n subjects, one subject after the other.

    Attributes:
        latents: scaled latents of all images; a rectangle's, row after row, at the beginning of
            the room that a square's would take (`fitted`).
        texts: prompt embeddings of all captions.
        empty: what the base model takes where nothing is said.
        first: where each subject's images begin.
        counts: images of each subject.
        sides: height and width of the latents of each image, on the CPU; None: all are squares.
    """

    latents: Float[Tensor, "images c h w"]
    texts: Texts
    empty: Texts
    first: Int64[Tensor, " n"]
    counts: tuple[int, ...]
    sides: Int64[Tensor, "images 2"] | None = None

    @classmethod
    def of(
        cls,
        latents: Float[Tensor, "images c h w"],
        texts: Texts,
        empty: Texts,
        counts: Sequence[int],
        sides: Int64[Tensor, "images 2"],
    ) -> "EncodedSubjects":
        """Subjects whose images follow one another, `counts` of each."""
        first = torch.tensor([0, *counts[:-1]], device=latents.device).cumsum(0)
        square = bool((sides == torch.tensor(latents.shape[2:])).all())
        return cls(latents, texts, empty, first, tuple(counts), None if square else sides)

    def pick(
        self, images: Int64[Tensor, "n m"], dropped: Bool[Tensor, "n m"]
    ) -> tuple[Float[Tensor, "nm c i j"], Texts]:
        """Latents and texts of each subject's own `images`, without the captions `dropped`.

        The images have equal sides.
        """
        index = (images + self.first[:, None]).flatten()
        texts = self.texts[index].replaced(dropped.flatten(), self.empty)
        if self.sides is None:
            return self.latents[index], texts
        return cut(self.latents[index], self.sides[index[0].cpu()].tolist()), texts

    def of_equal_sides(
        self, draw: Draw
    ) -> Iterator[tuple[Int64[Tensor, " s"], "EncodedSubjects", Draw]]:
        """A step's samples in parts whose images have equal sides, each sample as a subject.

        Yields:
            Whose they are, and what `pick` takes.
        """
        assert self.sides is not None, "else all are squares"
        all_sides = self.sides[(draw.images + self.first[:, None]).cpu()]
        for sides in all_sides.flatten(0, 1).unique(dim=0):
            place = (all_sides == sides).all(dim=-1).nonzero().to(self.first.device)
            whose, which = place.unbind(dim=1)
            part = Draw(*(drawn[whose, which][:, None] for drawn in draw))
            yield whose, replace(self, first=self.first[whose]), part


def fitted(latents: Float[Tensor, "k c i j"], shape: Sequence[int]) -> Float[Tensor, "k c h w"]:
    """Latents of a rectangle in the room of a square's, which `shape` states; zeros follow them."""
    if latents.shape[2:] == tuple(shape[1:]):
        return latents
    room = latents.new_zeros(*latents.shape[:2], shape[1] * shape[2])
    room[..., : latents[0, 0].numel()] = latents.flatten(2)
    whole: Tensor = room.unflatten(2, tuple(shape[1:]))
    return whole


def cut(part: Float[Tensor, "k c h w"], sides: Sequence[int]) -> Float[Tensor, "k c i j"]:
    """What a rectangle of the sides i, j takes of a square's room: latents of it, or noise."""
    if part.shape[2:] == tuple(sides):
        return part
    own: Tensor = part.flatten(2)[..., : sides[0] * sides[1]].unflatten(2, tuple(sides))
    return own


def encode_subjects(base: BaseModel, subjects: Iterable[Subject]) -> EncodedSubjects:
    """Encode subject by subject, so that the result does not depend on the fleet.

    Photos that have none of the base model's `frames` are cut (`framing.frame`).  Those of a
    subject come in the order of their sides.

    Each subject is taken once and let go, so they need not all be in memory.

    Raises:
        CollectionError: there is no subject, or one has no image or not one caption for each.
    """
    latents, texts, sides, counts = [], [], list[Sequence[int]](), list[int]()
    for subject in subjects:
        if not 0 < len(subject.photos) == len(subject.captions):
            raise CollectionError(
                "a subject must have at least one image and a caption for each, but "
                f"{subject.id!r} has {len(subject.photos)} images and "
                f"{len(subject.captions)} captions"
            )
        photos = framed_subject(subject, base.frames).photos
        order = sorted(range(len(photos)), key=lambda i: photos[i].shape)
        blocks = [photos] if isinstance(photos, Tensor) else [photos[i][None] for i in order]
        for block in blocks:
            encoded = base.encode_images(block)
            latents.append(fitted(encoded, base.latent_shape))
            sides += [encoded.shape[2:]] * len(encoded)
        texts.append(base.encode_prompts([subject.captions[i] for i in order]))
        counts.append(len(photos))
    if not latents:
        raise CollectionError("a fleet must have at least one subject, but got none")
    empty = base.empty_prompts(1)
    parts = torch.cat(latents), Texts.cat(texts), empty, counts, torch.tensor(sides)
    return EncodedSubjects.of(*parts)
