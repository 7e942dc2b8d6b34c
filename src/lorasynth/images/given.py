"""Photos as Python programs have them: paths, open files, Pillow images, arrays, tensors."""

import io
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lorasynth.core.errors import ImageError
from lorasynth.images.files import decode_photo, read_photo

#: A photo: a path, a file's content or an open file, a Pillow image, or pixels as array or tensor,
#: (height, width, RGB) or (RGB, height, width), integers from 0 to 255 or floats from 0 to 1.
Photo: TypeAlias = Path | str | bytes | io.IOBase | Image.Image | NDArray[Any] | Tensor


def as_photo(photo: Any) -> tuple[UInt8[Tensor, "h w 3"], str]:
    """The pixels of a photo in any of these forms, and what to call it in an error.

    Raises:
        ImageError: it is no photo, or its pixels have another shape or type.
    """
    if isinstance(photo, str | Path):
        return read_photo(photo), str(photo)
    if isinstance(photo, bytes | bytearray | memoryview):
        return decode_photo(io.BytesIO(bytes(photo)), "the photo"), "the photo"
    if isinstance(photo, Image.Image):
        saved = io.BytesIO()  # through the one reader: orientation, profile, transparency, limits
        photo.save(saved, "PNG", icc_profile=photo.info.get("icc_profile"), exif=photo.getexif())
        saved.seek(0)
        return decode_photo(saved, "the photo"), "the photo"
    if isinstance(photo, Tensor | np.ndarray):
        return _pixels(torch.as_tensor(photo).detach().cpu()), "the photo"
    if hasattr(photo, "read"):
        name = str(getattr(photo, "name", "the photo"))
        return decode_photo(io.BytesIO(photo.read()), name), name
    raise ImageError(
        "a photo must be a path, bytes, an open file, a Pillow image, an array or a tensor, but is "
        f"a {type(photo).__name__}"
    )


def _pixels(values: Tensor) -> UInt8[Tensor, "h w 3"]:
    given = tuple(values.shape)
    if values.dim() == 3 and values.shape[2] != 3:  # as torchvision has them
        values = values.movedim(0, 2)
    if values.dim() != 3 or values.shape[2] != 3 or 0 in values.shape:
        raise ImageError(
            "pixels must be (height, width, 3) or (3, height, width), but their shape is "
            f"{given}: give one photo at a time"
        )
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise ImageError(
            f"pixels must be bytes from 0 to 255 or floats from 0 to 1, but are {values.dtype}"
        )
    if not (values.min() >= 0 and values.max() <= 1):  # NaN too
        raise ImageError(
            "pixels that are floats must be from 0 to 1, but are from "
            f"{values.min():g} to {values.max():g}"
        )
    return (values * 255).round().to(torch.uint8)
