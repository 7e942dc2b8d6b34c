"""Adapters for subjects by gradient descent on coordinates, all subjects in one batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors, map_factors
from lorasynth.base import BaseModel
from lorasynth.engine.loop import OnStep, descend
from lorasynth.images import Subject
from lorasynth.optimise.contract import Coordinates


class Personalised(NamedTuple):
    """What descent found.

    Attributes:
        factors: stacked over the n subjects.
        losses: denoising loss of each subject at each step.
    """

    factors: Factors
    losses: Float[Tensor, "n steps"]


def personalise(
    base: BaseModel,
    subjects: Sequence[Subject],
    coordinates: Coordinates,
    *,
    on_step: OnStep | None = None,
) -> Personalised:
    """Move the coordinates, in place, to where their adapters denoise the subjects' images best.

    Args:
        base: the frozen base model.
        subjects: n subjects with 1 to 10 images each.
        coordinates: of n adapters for this base model.
        on_step: called after each step.

    Raises:
        CollectionError: there is no subject, or one has no images or captions.
        LayoutError: the adapters do not fit the base model.
    """
    coordinates.to(base.device)
    losses = descend(
        base,
        coordinates.descent,
        subjects,
        [coordinates.numbers],
        coordinates,
        penalties=coordinates.penalties,
        on_step=on_step,
    )
    with torch.no_grad():
        return Personalised(map_factors(torch.clone, coordinates()), losses)
