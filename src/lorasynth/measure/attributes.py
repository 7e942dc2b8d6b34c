"""What the judge finds in generated pictures, against what was asked for."""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lorasynth.pictures.pool import IDENTITY_LABELS, LABELS

#: Attributes that a prompt asks for and that count as prompt following.
PROMPTED = ("mouth", "clothes", "clothes_colour", "background")


def found(
    judged: Int64[Tensor, "*n attributes"], asked: Int64[Tensor, "*n attributes"]
) -> Bool[Tensor, "*n attributes"]:
    """Where the judge finds what was asked, in the order of `LABELS`."""
    return judged == asked


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
