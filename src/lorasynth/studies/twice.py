"""How much of an adapter is about its subject: train each subject twice and compare.

The two trainings of a subject see different images and draw from different streams; what all
adapters of a library share (the base model, a shared A, shared noise) they share too.  Cosines of
ΔW come from the factors' inner products, so they do not depend on the gauge.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors, cosines, map_factors
from lorasynth.base import BaseModel
from lorasynth.collect import AdapterPredictor
from lorasynth.core.errors import CollectionError
from lorasynth.engine import OnStep, Recipe, train_fleet
from lorasynth.images import Subject


@dataclass(frozen=True, kw_only=True)
class Repeatability:
    """Mean cosines of ΔW between adapters trained apart.

    Attributes:
        same: between the two adapters of one subject; the repeatability.
        different: between adapters of different subjects, over both trainings.
        cosines: all of them, rows the first training, columns the second.
    """

    same: float
    different: float
    cosines: Float[Tensor, "n n"]


def compare(first: Factors, second: Factors) -> Repeatability:
    """Compare two trainings of the same n ≥ 2 subjects in the same order.

    Raises:
        CollectionError: there are fewer than two subjects.
    """
    matrix = cosines(first, second)
    n = len(matrix)
    if n < 2 or matrix.shape[1] != n:
        raise CollectionError(
            "repeatability needs two adapters of each of at least two subjects, but got "
            f"{n} and {matrix.shape[1]} adapters"
        )
    other = ~torch.eye(n, dtype=torch.bool, device=matrix.device)
    return Repeatability(
        same=float(matrix.diagonal().mean()),
        different=float(matrix[other].mean()),
        cosines=matrix,
    )


def split_images(subject: Subject) -> tuple[Subject, Subject]:
    """Every second image of a subject, and the others, as two subjects with streams of their own.

    Raises:
        CollectionError: the subject has a single image.
    """
    if len(subject.photos) < 2:
        raise CollectionError(
            "a subject must have at least 2 images to be trained twice on different ones, but "
            f"{subject.id!r} has {len(subject.photos)}"
        )
    first, second = (
        replace(
            subject,
            id=f"{subject.id}/{half}",
            photos=subject.photos[half::2],
            seen={},
            captions=list(subject.captions)[half::2],
        )
        for half in range(2)
    )
    return first, second


def train_twice(
    base: BaseModel,
    recipe: Recipe,
    subjects: Sequence[Subject],
    *,
    anchor: AdapterPredictor | None = None,
    on_step: OnStep | None = None,
) -> tuple[Factors, Factors]:
    """Train each subject on one half of its images and on the other, all in one fleet.

    An anchor too sees the images of one half only.

    Raises:
        CollectionError: a subject has a single image.
    """
    halves = [split_images(subject) for subject in subjects]
    trainees = [half[index] for index in range(2) for half in halves]
    start = None if anchor is None else anchor.predict(trainees)
    fleet = train_fleet(base, recipe, trainees, init=start, on_step=on_step)
    n = len(subjects)
    first = map_factors(lambda part: part[:n], fleet.factors)
    return first, map_factors(lambda part: part[n:], fleet.factors)
