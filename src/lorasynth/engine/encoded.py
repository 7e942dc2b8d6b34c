"""The subjects of a fleet as the base model sees them; each image and caption is encoded once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lorasynth.base import BaseModel, Texts
from lorasynth.condition import framed_subject
from lorasynth.core.errors import CollectionError
from lorasynth.images import Subject


@dataclass(frozen=True)
class EncodedSubjects:
    """Latents and text embeddings of n subjects, one subject after the other.

    Attributes:
        latents: scaled latents of all images.
        texts: prompt embeddings of all captions.
        empty: what the base model takes where nothing is said.
        first: where each subject's images begin.
        counts: images of each subject.
    """

    latents: Float[Tensor, "images c h w"]
    texts: Texts
    empty: Texts
    first: Int64[Tensor, " n"]
    counts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        latents: Float[Tensor, "images c h w"],
        texts: Texts,
        empty: Texts,
        counts: Sequence[int],
    ) -> "EncodedSubjects":
        """Subjects whose images follow one another, `counts` of each."""
        first = torch.tensor([0, *counts[:-1]], device=latents.device).cumsum(0)
        return cls(latents, texts, empty, first, tuple(counts))

    def pick(
        self, images: Int64[Tensor, "n m"], dropped: Bool[Tensor, "n m"]
    ) -> tuple[Float[Tensor, "nm c h w"], Texts]:
        """Latents and texts of each subject's own `images`, without the captions `dropped`."""
        index = (images + self.first[:, None]).flatten()
        return self.latents[index], self.texts[index].replaced(dropped.flatten(), self.empty)


def encode_subjects(base: BaseModel, subjects: Iterable[Subject]) -> EncodedSubjects:
    """Encode subject by subject, so that the result does not depend on the fleet.

    Photos that are not squares of the base model's size are cut (`framing.frame`).

    Each subject is taken once and let go, so they need not all be in memory.

    Raises:
        CollectionError: there is no subject, or one has no image or not one caption for each.
    """
    latents, texts = [], []
    for subject in subjects:
        if not 0 < len(subject.photos) == len(subject.captions):
            raise CollectionError(
                "a subject must have at least one image and a caption for each, but "
                f"{subject.id!r} has {len(subject.photos)} images and "
                f"{len(subject.captions)} captions"
            )
        latents.append(base.encode_images(framed_subject(subject, base.image_size).images))
        texts.append(base.encode_prompts(subject.captions))
    if not latents:
        raise CollectionError("a fleet must have at least one subject, but got none")
    counts = tuple(len(part) for part in latents)
    return EncodedSubjects.of(torch.cat(latents), Texts.cat(texts), base.empty_prompts(1), counts)
