"""What the judge finds in generated images, against what was asked for."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lorasynth.avatars.pool import IDENTITY_LABELS, LABELS

#: Attributes that a prompt asks for and that count as prompt following.
PROMPTED = ("mouth", "clothes", "clothes_colour", "background")


#: Attribute -> value -> the value that it counts as: at 64 px a sad and a serious mouth are nearly
#: one drawing (`docs/experiments.md`, 2026-11-25: their latents are 11 times nearer than others').
ALIKE = {"mouth": {"serious": "sad"}}

_COUNTS_AS = [
    torch.tensor([values.index(ALIKE.get(name, {}).get(value, value)) for value in values])
    for name, values in LABELS.items()
]


def found(
    judged: Int64[Tensor, "*n attributes"], asked: Int64[Tensor, "*n attributes"]
) -> Bool[Tensor, "*n attributes"]:
    """Where the judge finds what was asked, or what counts as one with it (`ALIKE`).

    Attributes are in the order of `LABELS`.
    """
    agrees = [
        number[judged[..., column]] == number[asked[..., column]]
        for column, number in enumerate(_COUNTS_AS)
    ]
    return torch.stack(agrees, dim=-1)


#: Attribute -> another attribute and its value that hides it: behind opaque glasses nothing shows
#: which eyes were drawn.
HIDDEN = {"eyes": ("glasses", "kurt")}


def shares_found(
    judged: Int64[Tensor, "n attributes"], asked: Int64[Tensor, "n attributes"]
) -> dict[str, float]:
    """Per attribute, the share of images in which the judge finds it, of those that can show it."""
    agrees, names = found(judged, asked).float(), list(LABELS)
    shares = {}
    for column, name in enumerate(names):
        shown = torch.ones(len(asked), dtype=torch.bool)
        if name in HIDDEN:
            other, value = HIDDEN[name]
            shown = asked[:, names.index(other)] != LABELS[other].index(value)
        shares[name] = float(agrees[shown, column].mean())
    return shares


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
