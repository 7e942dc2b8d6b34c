"""Read images that people bring: formats that photos have, checked before they are decoded.

Every image is read here: its first frame, upright, in sRGB, on white where it is transparent.
"""

import io
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from lorasynth.core.errors import ImageError, installing
from lorasynth.core.progress import note

#: Larger images are refused before decoding: they need gigabytes and add nothing.
MAX_MEGAPIXELS = 40
#: Larger files are refused unread.
MAX_BYTES = 64 << 20
#: What counts as an image in a folder.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
#: Pillow's readers that are used; it has more, and one of them starts a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
#: What turns an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: The mode of pixels in the colour space of a profile, and modes that such an image has.
_SPACES = {
    "RGB ": ("RGB", ("RGB", "RGBA", "P", "PA")),
    "GRAY": ("L", ("L", "LA")),
    "CMYK": ("CMYK", ("CMYK",)),
}


def read_photo(path: Path | str) -> UInt8[Tensor, "h w 3"]:
    """Read an image whole and turn it upright.

    Raises:
        ImageError: missing, not an image, truncated, of more than 8 bits per channel, or larger
            than `MAX_MEGAPIXELS`.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"an image must be a file, but {path} is not one: check the path")
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(
            f"an image's file may have {MAX_BYTES >> 20} MB, but {path} has "
            f"{path.stat().st_size >> 20}: save it as JPEG or PNG"
        )
    return decode_photo(path, str(path))


def decode_photo(file: Path | io.BytesIO, name: str) -> UInt8[Tensor, "h w 3"]:
    """As `read_photo`, of a photo that may be part of another file; messages call it `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken tags that nothing here reads
            with Image.open(file, formats=readable_formats()) as image:
                _check(name, image)
                turn = _TURNS.get(_orientation(image))
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    note(f"{name} has several images: the first is used")
                upright = _on_white(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"an image may have {MAX_MEGAPIXELS} megapixels, but {name} has far more: "
            "scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        remedy = "export it as one of these"
        if _is_heic(file) and "HEIF" not in readable_formats():
            remedy = f"it is HEIC, which needs an extra: {installing('heic')}"
        raise ImageError(
            f"an image must be a whole image file ({', '.join(_FORMATS)} or HEIC), but {name} is "
            f"not (cannot identify image file): {remedy}"
        ) from error
    except Exception as error:  # whatever a reader raises at damage
        raise ImageError(
            f"an image must be a whole image file (PNG, JPEG, WebP, ...), but {name} is not "
            f"({str(error) or type(error).__name__}): export it again"
        ) from error
    return torch.from_numpy(np.array(upright if turn is None else upright.transpose(turn)))


def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read; HEIC where its reader is installed."""
    return (*_FORMATS, "HEIF") if _reads_heic() else _FORMATS


@cache  # to look for a package takes as long as to decode a small image
def _reads_heic() -> bool:
    if find_spec("pillow_heif") is None:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return True


def _is_heic(file: Path | io.BytesIO) -> bool:
    with file.open("rb") if isinstance(file, Path) else io.BytesIO(file.getvalue()) as opened:
        start = opened.read(12)
    return start[4:8] == b"ftyp" and start[8:] in _HEIC


def _orientation(image: Image.Image) -> int:
    """How the image is turned: the one tag of EXIF that is read; 1 if it is absent or odd."""
    try:
        stated = image.getexif().get(0x0112, 1)
    except Exception:  # other tags are no reason to refuse an image
        return 1
    return stated if isinstance(stated, int) else 1


def _on_white(image: Image.Image) -> Image.Image:
    """An sRGB image in which white shows through transparent pixels, not what they hide."""
    colours = _in_srgb(image)
    if not image.has_transparency_data:
        return colours
    colours.putalpha(image.convert("RGBA").getchannel("A"))
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, colours).convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """The colours that the embedded profile means; as they are where it is absent or damaged."""
    plain = image.convert("RGBA" if image.has_transparency_data else "RGB").convert("RGB")
    if not (profile := image.info.get("icc_profile")):
        return plain
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode, modes = _SPACES[own.profile.xcolor_space]
        if image.mode not in modes:
            return plain
        pixels = plain if mode == "RGB" else image.convert(mode)
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(pixels, own, srgb, outputMode="RGB") or plain
    except Exception:  # viewers pass over a damaged profile, too
        return plain


def _check(name: str, image: Image.Image) -> None:
    """Refuse an image before it is decoded."""
    width, height = image.size
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise ImageError(
            f"an image may have {MAX_MEGAPIXELS} megapixels, but {name} has "
            f"{width * height / 1e6:.0f} ({width} x {height}): scale it down first"
        )
    if image.mode.startswith(("I", "F")):  # converted to RGB, they would be white
        raise ImageError(
            f"an image must have 8 bits per channel, but {name} has more (mode {image.mode}): "
            "export it with 8"
        )


def to_unit_range(images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Images as floats from -1 to 1, channels first."""
    return images.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 127.5 - 1


def to_image(image: UInt8[Tensor, "h w 3"]) -> Image.Image:
    """A tensor as a Pillow image."""
    return Image.fromarray(image.cpu().numpy())
