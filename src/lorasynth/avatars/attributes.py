"""What the judge finds in generated images, against what was asked for."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from lorasynth.avatars.pool import LABELS

#: Attributes that a prompt asks for and that count as prompt following.
PROMPTED = ("mouth", "clothes", "clothes_colour", "background")


#: Attribute -> value -> the value that it counts as, where two are nearly one drawing: at 64 px a
#: sad and a serious mouth (`docs/experiments.md`, 2026-11-25: their latents are 11 times nearer
#: than others'), at 128 px two heads of short hair, which differ in 2 to 9 pixels.
ALIKE = {"mouth": {"serious": "sad"}, "top": {"theCaesarAndSidePart": "theCaesar"}}

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


def share_found(
    judged: Int64[Tensor, "k attributes"],
    asked: Int64[Tensor, "k attributes"],
    names: Sequence[str],
) -> float:
    """Of some attributes of a subject's images: how often what was asked for is there."""
    columns = [list(LABELS).index(name) for name in names]
    return float(found(judged, asked)[..., columns].float().mean())
