"""What the judge finds in generated pictures, against what was asked for."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lorasynth.pictures.pool import IDENTITY_LABELS, LABELS

#: Attributes that a prompt asks for and that count as prompt following.
PROMPTED = ("mouth", "clothes", "clothes_colour", "background")


#: Values that count as one, in each attribute: at 64 px a sad and a serious mouth are nearly one
#: drawing (`docs/experiments.md`, 2026-11-25: their latents are 11 times nearer than any others').
ALIKE = {"mouth": {"sad", "serious"}}


def _first_alike(name: str, values: Sequence[str]) -> Int64[Tensor, " values"]:
    alike = ALIKE.get(name, set())
    first = next((i for i, value in enumerate(values) if value in alike), 0)
    return torch.tensor([first if value in alike else i for i, value in enumerate(values)])


_FIRST_ALIKE = [_first_alike(name, values) for name, values in LABELS.items()]


def found(
    judged: Int64[Tensor, "*n attributes"], asked: Int64[Tensor, "*n attributes"]
) -> Bool[Tensor, "*n attributes"]:
    """Where the judge finds what was asked, or what counts as one with it (`ALIKE`).

    Attributes are in the order of `LABELS`.
    """
    agrees = [
        first[judged[..., column]] == first[asked[..., column]]
        for column, first in enumerate(_FIRST_ALIKE)
    ]
    return torch.stack(agrees, dim=-1)


def _share(
    judged: Int64[Tensor, "n k attributes"],
    asked: Int64[Tensor, "n k attributes"],
    names: Sequence[str],
) -> Float[Tensor, " n"]:
    columns = [list(LABELS).index(name) for name in names]
    return found(judged, asked)[..., columns].float().mean(dim=(1, 2))


def attribute_accuracy(
    judged: Int64[Tensor, "n k attributes"], asked: Int64[Tensor, "n k attributes"]
) -> Float[Tensor, " n"]:
    """Per subject: how often its hair or hat, facial hair and glasses are there."""
    return _share(judged, asked, tuple(IDENTITY_LABELS))


def prompt_following(
    judged: Int64[Tensor, "n k attributes"], asked: Int64[Tensor, "n k attributes"]
) -> Float[Tensor, " n"]:
    """Per subject: how often expression, clothes, their colour and the background are there."""
    return _share(judged, asked, PROMPTED)
