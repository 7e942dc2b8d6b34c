"""Read pictures that people bring: any format that Pillow knows, checked before it is decoded."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from lorasynth.errors import PictureError

#: Larger pictures are refused before decoding: they need gigabytes and add nothing.
MAX_MEGAPIXELS = 40
#: What counts as a picture in a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_photo(path: Path | str) -> UInt8[Tensor, "h w 3"]:
    """Read a picture whole and turn it upright.

    Raises:
        PictureError: missing, not a picture, truncated, of more than 8 bits per channel, or larger
            than `MAX_MEGAPIXELS`.
    """
    path = Path(path)
    if not path.is_file():
        raise PictureError(f"a picture must be a file, but {path} is not one: check the path")
    return _decode(path, str(path))


def decode_photo(file: io.BytesIO, name: str) -> UInt8[Tensor, "h w 3"]:
    """As `read_photo`, of a photo that is part of another file.

    Args:
        file: the photo.
        name: what messages call it.

    Raises:
        PictureError: see `read_photo`.
    """
    return _decode(file, name)


def _decode(file: Path | io.BytesIO, name: str) -> UInt8[Tensor, "h w 3"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken tags that nothing here reads
            with Image.open(file) as picture:
                _check_pixels(name, picture.size)
                _check_depth(name, picture.mode)
                upright = _flatten(ImageOps.exif_transpose(picture))
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"a picture may have {MAX_MEGAPIXELS} megapixels, but {name} has far more: "
            "scale it down first"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(
            f"a picture must be a whole image file (PNG, JPEG, WebP, ...), but {name} is not "
            f"({error}): export it again"
        ) from error
    return torch.from_numpy(np.array(upright))


def _check_pixels(name: str, size: tuple[int, int]) -> None:
    megapixels = size[0] * size[1] / 1e6
    if megapixels > MAX_MEGAPIXELS:
        raise PictureError(
            f"a picture may have {MAX_MEGAPIXELS} megapixels, but {name} has {megapixels:.0f} "
            f"({size[0]} x {size[1]}): scale it down first"
        )


def _check_depth(name: str, mode: str) -> None:
    if mode.startswith(("I", "F")):  # converted to RGB, they would be white
        raise PictureError(
            f"a picture must have 8 bits per channel, but {name} has more (mode {mode}): export it "
            "with 8"
        )


def _flatten(picture: Image.Image) -> Image.Image:
    """An RGB picture in which white shows through transparent pixels, not what they hide."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def pictures_in(folder: Path | str) -> list[Path]:
    """The picture files of a folder, by name, not of its subfolders."""
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def to_unit_range(pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures as floats from -1 to 1, channels first."""
    return pictures.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 127.5 - 1


def to_image(picture: UInt8[Tensor, "h w 3"]) -> Image.Image:
    """A tensor as a Pillow image."""
    return Image.fromarray(picture.cpu().numpy())
