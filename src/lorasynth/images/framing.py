"""Which part of a photo is trained on and embedded: around the face, else where the detail is."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from lorasynth.images.files import to_image

#: Side of the square around a face, in sides of the face: head, hair and shoulders.
_MARGIN = 2.6
#: How far below the middle of the face the square's middle is, in sides of the face.
_BELOW = 0.25
#: Pixels of the longer side in which detail is looked for.
_COARSE = 64


#: Height and width in pixels.
Sides: TypeAlias = tuple[int, int]


class Box(NamedTuple):
    """A rectangle of a photo, in pixels from its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


def framed(
    photo: UInt8[Tensor, "h w 3"], size: int | Sequence[Sides], face: Box | None = None
) -> UInt8[Tensor, "height width 3"]:
    """The part of a photo that `frame` chooses, scaled; one that has the size, as it is.

    Args:
        photo: of any size.
        size: of the square, or the sides that may be chosen of: those nearest to the photo's ratio.
        face: of the subject, if one was found.
    """
    choices = [(size, size)] if isinstance(size, int) else size
    if tuple(photo.shape[:2]) in choices:
        return photo
    own = math.log(photo.shape[0] / photo.shape[1])
    height, width = min(choices, key=lambda sides: abs(math.log(sides[0] / sides[1]) - own))
    box = frame(photo, face, width / height if len(choices) > 1 else None)
    cut = to_image(photo).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(cut))


def frame(
    photo: UInt8[Tensor, "h w 3"], face: Box | None = None, ratio: float | None = None
) -> Box:
    """The square, or rectangle, of a photo that shows its subject, inside the photo.

    Around a face it is 2.6 times as long as the face's longer side, with more room below than
    above, for the shoulders.  Without one it is as long as the photo's shorter side, and its middle
    is the middle of the photo's detail: the mean place of the absolute differences between
    neighbouring pixels' brightness, seen at 64 pixels.  Of a square photo it is all of it.

    A rectangle of a given ratio is as large as the photo allows, and its middle is as near as can
    be to that of the square.

    Args:
        photo: of any size.
        face: of the subject, if one was found.
        ratio: width by height of the rectangle; None for the square.
    """
    height, width = photo.shape[:2]
    side = float(min(height, width))
    if height == width and face is None:
        x, y = side / 2, side / 2
    elif face is None:
        x, y = _middle_of_detail(photo)
    else:
        length = max(face.right - face.left, face.bottom - face.top)
        side = min(side, _MARGIN * length)
        x, y = (face.left + face.right) / 2, (face.top + face.bottom) / 2 + _BELOW * length
    tall = side if ratio is None else min(float(height), width / ratio)
    wide = side if ratio is None else min(float(width), height * ratio)
    left = min(max(x - wide / 2, 0.0), width - wide)
    top = min(max(y - tall / 2, 0.0), height - tall)
    return Box(left, top, left + wide, top + tall)


def _middle_of_detail(photo: UInt8[Tensor, "h w 3"]) -> tuple[float, float]:
    """The mean place of differences between neighbours; the middle where all is flat."""
    height, width = photo.shape[:2]
    scale = max(height, width) / _COARSE
    coarse = (max(round(width / scale), 2), max(round(height / scale), 2))
    grey = np.asarray(
        to_image(photo).convert("L").resize(coarse, Image.Resampling.BOX), dtype=float
    )
    across, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    detail = across[:-1] + down[:, :-1]
    if not detail.any():
        return width / 2, height / 2
    rows, columns = np.indices(detail.shape) + 1.0  # differences lie between two pixels
    total = detail.sum()
    x, y = float((columns * detail).sum() / total), float((rows * detail).sum() / total)
    return x * width / coarse[0], y * height / coarse[1]
