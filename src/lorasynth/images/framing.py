"""Which square of a photo is trained on and embedded: around the face, else where the detail is."""

from typing import NamedTuple

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


class Box(NamedTuple):
    """A rectangle of a photo, in pixels from its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


def framed(
    photo: UInt8[Tensor, "h w 3"], size: int, face: Box | None = None
) -> UInt8[Tensor, "side side 3"]:
    """The square of a photo that `frame` chooses, scaled to `size`; one that is it, as it is."""
    if photo.shape[:2] == (size, size):
        return photo
    box = frame(photo, face)
    square = to_image(photo).resize((size, size), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(square))


def frame(photo: UInt8[Tensor, "h w 3"], face: Box | None = None) -> Box:
    """The square of a photo that shows its subject, inside the photo.

    Around a face it is 2.6 times as long as the face's longer side, with more room below than
    above, for the shoulders.  Without one it is as long as the photo's shorter side, and its middle
    is the middle of the photo's detail: the mean place of the absolute differences between
    neighbouring pixels' brightness, seen at 64 pixels.  Of a square photo it is all of it.

    Args:
        photo: of any size.
        face: of the subject, if one was found.
    """
    height, width = photo.shape[:2]
    side = float(min(height, width))
    if face is None:
        x, y = _middle_of_detail(photo)
    else:
        length = max(face.right - face.left, face.bottom - face.top)
        side = min(side, _MARGIN * length)
        x, y = (face.left + face.right) / 2, (face.top + face.bottom) / 2 + _BELOW * length
    left = min(max(x - side / 2, 0.0), width - side)
    top = min(max(y - side / 2, 0.0), height - side)
    return Box(left, top, left + side, top + side)


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
