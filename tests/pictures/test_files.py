"""Pictures that people bring, and the one line that they get for those that cannot be used."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lorasynth.errors import PictureError
from lorasynth.pictures import pictures_in, read_photo, to_image
from lorasynth.pictures.files import MAX_MEGAPIXELS, to_unit_range
from lorasynth.pictures.framing import framed

SIZE = 8


def read_picture(path: Path, size: int) -> Tensor:
    return framed(read_photo(path), size)


def quarters() -> Image.Image:
    """Red, green over blue, white."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:] = (255, 0, 0), (0, 255, 0)
    pixels[4:, :4], pixels[4:, 4:] = (0, 0, 255), (255, 255, 255)
    return Image.fromarray(pixels)


def corners(picture: Tensor) -> list[list[int]]:
    last = picture.shape[0] - 1
    return [picture[y, x].tolist() for y in (0, last) for x in (0, last)]


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


# What can be read


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".gif", ".webp", ".jpg", ".JPEG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    lossless = {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": 0}
    quarters().save(path, **lossless)
    picture = read_picture(path, SIZE)
    assert picture.shape == (SIZE, SIZE, 3)
    difference = picture.float() - torch.from_numpy(np.array(quarters())).float()
    assert difference.abs().max() <= (6 if suffix.lower() in (".jpg", ".jpeg") else 0)
    assert pictures_in(tmp_path) == [path]


#: Where each corner of the stored picture is seen, by EXIF orientation.
ORIENTATIONS = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    6: [BLUE, RED, WHITE, GREEN],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_turned_photo_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters().save(tmp_path / "photo.png", exif=exif)
    assert corners(read_picture(tmp_path / "photo.png", SIZE)) == ORIENTATIONS[orientation]


def test_the_middle_square_is_scaled(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = (10, 200, 30)
    for name, array in (("wide.png", pixels), ("tall.png", pixels.swapaxes(0, 1))):
        Image.fromarray(np.ascontiguousarray(array)).save(tmp_path / name)
        assert (read_picture(tmp_path / name, 40) == torch.tensor([10, 200, 30])).all()
        # Near its edges the filter sees a little of what is cut off.
        small = read_picture(tmp_path / name, 10).float()
        assert (small - torch.tensor([10, 200, 30])).abs().max() <= 20


def _greyscale() -> tuple[Image.Image, list[list[int]]]:
    return quarters().convert("L"), [[76] * 3, [150] * 3, [29] * 3, WHITE]


def _one_bit() -> tuple[Image.Image, list[list[int]]]:
    return quarters().convert("L").point(lambda v: 255 * (v > 100)).convert("1"), [
        [0] * 3,
        WHITE,
        [0] * 3,
        WHITE,
    ]


def _palette() -> tuple[Image.Image, list[list[int]]]:
    return quarters().convert("P", palette=Image.Palette.ADAPTIVE), [RED, GREEN, BLUE, WHITE]


def _transparent() -> tuple[Image.Image, list[list[int]]]:
    picture = quarters().convert("RGBA")
    picture.paste((1, 2, 3, 0), (4, 0, 8, 4))  # nothing is seen of this colour
    picture.paste((0, 0, 0, 128), (0, 4, 4, 8))
    return picture, [RED, WHITE, [127] * 3, WHITE]


def _transparent_grey() -> tuple[Image.Image, list[list[int]]]:
    picture = Image.new("LA", (SIZE, SIZE), (0, 0))
    picture.paste((50, 255), (0, 0, 4, 8))
    return picture, [[50] * 3, WHITE, [50] * 3, WHITE]


@pytest.mark.parametrize("make", [_greyscale, _one_bit, _palette, _transparent, _transparent_grey])
def test_modes(tmp_path: Path, make: Callable[[], tuple[Image.Image, list[list[int]]]]) -> None:
    picture, expected = make()
    picture.save(tmp_path / "picture.png")
    found = corners(read_picture(tmp_path / "picture.png", SIZE))
    assert np.abs(np.array(found) - expected).max() <= 1


def test_a_transparent_palette_shows_white(tmp_path: Path) -> None:
    picture = Image.new("P", (SIZE, SIZE))
    picture.putpalette([200, 0, 0, 0, 0, 200])
    picture.paste(1, (4, 0, 8, 8))
    for name in ("p.gif", "p.png"):
        picture.save(tmp_path / name, transparency=0)
        found = corners(read_picture(tmp_path / name, SIZE))
        assert found == [WHITE, [0, 0, 200], WHITE, [0, 0, 200]]


def test_an_animation_gives_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert corners(read_picture(tmp_path / "a.gif", SIZE)) == [RED] * 4


# What cannot


def refused(path: Path, message: str) -> None:
    with pytest.raises(PictureError, match=message) as caught:
        read_picture(path, SIZE)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "must be a file.*check the path")
    refused(tmp_path, "must be a file")


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg></svg>", b"\x89PNG\r\n\x1a\n"])
def test_not_a_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    refused(tmp_path / "x.png", "must be a whole image file.*export it again")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, "must be a whole image file")


def png_header(width: int, height: int) -> bytes:
    """The start of a 1-bit PNG of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((10_000, 5_000), r"has 50 \(10000 x 5000\): scale it down first"),
        ((10_000, 10_000), "has 100 "),  # Pillow warns
        ((30_000, 30_000), "has far more: scale it down first"),  # Pillow refuses
    ],
)
def test_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], message: str
) -> None:
    (tmp_path / "large.png").write_bytes(png_header(*size))
    refused(tmp_path / "large.png", f"may have {MAX_MEGAPIXELS} megapixels, but .* {message}")


def test_a_whole_picture_of_50_megapixels(tmp_path: Path) -> None:
    Image.new("1", (10_000, 5_000)).save(tmp_path / "large.png")
    refused(tmp_path / "large.png", "has 50 ")


def test_more_than_8_bits_are_not_turned_white(tmp_path: Path) -> None:
    grey = np.full((SIZE, SIZE), 20_000, np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    refused(tmp_path / "x.png", r"must have 8 bits per channel.*mode I;16")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "x.tif")
    refused(tmp_path / "x.tif", "must have 8 bits per channel")


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    quarters().resize((20, 30)).save(stream, kind, **options)
    return stream.getvalue()


_EXIF = Image.Exif()
_EXIF[0x0112], _EXIF[0x010E] = 6, "a description"
WHOLE = [
    encoded("PNG", exif=_EXIF),
    encoded("JPEG", exif=_EXIF),
    encoded("WEBP", exif=_EXIF),
    encoded("GIF"),
    encoded("BMP"),
    encoded("TIFF"),
]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    whole=st.sampled_from(WHOLE),
    damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 400),
)
def test_damage_anywhere_gives_a_picture_or_one_line(
    tmp_path: Path, whole: bytes, damage: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(whole)
    for position, value in damage:
        content[position % len(content)] = value
    path = tmp_path / "damaged"
    path.write_bytes(content[: len(content) - cut // 4])
    try:
        assert read_picture(path, SIZE).shape == (SIZE, SIZE, 3)
    except PictureError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


# Folders and tensors


def test_the_pictures_of_a_folder_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "c.webp", "b.txt"):
        (tmp_path / name).touch()
    (tmp_path / "deeper.png").mkdir()
    assert [path.name for path in pictures_in(tmp_path)] == ["a.JPG", "b.png", "c.webp"]


def test_tensors_and_images() -> None:
    pictures = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    unit = to_unit_range(pictures)
    assert unit.shape == (1, 3, 16, 16)
    assert (unit.min(), unit.max()) == (-1, 1)
    assert ((unit[0, 0] + 1) * 127.5).round().to(torch.uint8).equal(pictures[0, ..., 0])
    assert np.array_equal(np.array(to_image(pictures[0])), pictures[0].numpy())
