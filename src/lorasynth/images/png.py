"""PNG files of synthetic images, which say that they are synthetic."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lorasynth import __version__
from lorasynth.core.atomic import write_bytes
from lorasynth.images.files import to_image

#: The IPTC's term for images made by a trained model.
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

#: The same where programs look for it: XMP, in the property that the IPTC defines.
_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    Iptc4xmpExt:DigitalSourceType="{_SOURCE}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""

#: What every file says of itself.
SYNTHETIC = {
    "Software": f"lorasynth {__version__}",
    "Comment": "A synthetic image, made by a generative model.",
    "DigitalSourceType": _SOURCE,
    "XML:com.adobe.xmp": _XMP,
}

#: Height of the letters of names beside a sheet, and what is left white at their sides, in pixels.
_LETTERS, _SPACE = 12, 4


def write_synthetic(
    path: Path, image: UInt8[Tensor, "h w 3"], facts: Mapping[str, str] | None = None
) -> None:
    """Write an image atomically, with `facts` beside `SYNTHETIC` in its text metadata.

    Raises:
        LorasynthError: the file cannot be written.
    """
    write_bytes(path, synthetic_png(image, facts))


def synthetic_png(image: UInt8[Tensor, "h w 3"], facts: Mapping[str, str] | None = None) -> bytes:
    """The content of the file that `write_synthetic` writes."""
    text = PngInfo()
    for name, value in (SYNTHETIC | dict(facts or {})).items():
        text.add_itxt(name, value)
    data = io.BytesIO()
    to_image(image).save(data, "PNG", pnginfo=text)
    return data.getvalue()


def contact_sheet(
    images: UInt8[Tensor, "b h w 3"], columns: int, gap: int = 2, names: Sequence[str] = ()
) -> UInt8[Tensor, "height width 3"]:
    """Images side by side in rows of `columns`, on white; names stand at the left of the rows."""
    b, h, w, _ = images.shape
    rows = -(-b // columns)
    sheet = images.new_full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255)
    for index, image in enumerate(images):
        top, left = index // columns * (h + gap), index % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return _beside(sheet, names, h + gap) if names else sheet


def _beside(
    sheet: UInt8[Tensor, "height width 3"], names: Sequence[str], apart: int
) -> UInt8[Tensor, "height wider 3"]:
    """The sheet with names at its left, of rows that begin so many pixels apart."""
    font, height = ImageFont.load_default(_LETTERS), sheet.shape[0]
    margin = max(math.ceil(font.getlength(name)) for name in names) + 2 * _SPACE
    image = Image.new("RGB", (margin, height), "white")
    draw = ImageDraw.Draw(image)
    for row, name in enumerate(names):
        middle = row * apart + apart // 2
        draw.text((_SPACE, middle), name, fill="black", font=font, anchor="lm")
    return torch.cat([torch.from_numpy(np.array(image)), sheet], dim=1)
