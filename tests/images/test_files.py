"""Images that people bring, and the one line that they get for those that cannot be used."""

import io
import os
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torch import Tensor

from lorasynth.core.errors import ImageError
from lorasynth.images import images_in, read_photo, to_image
from lorasynth.images.files import MAX_BYTES, MAX_MEGAPIXELS, to_unit_range
from lorasynth.images.framing import framed

SIZE = 8


def read_image(path: Path, size: int) -> Tensor:
    return framed(read_photo(path), size)


def quarters() -> Image.Image:
    """Red, green over blue, white."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:] = (255, 0, 0), (0, 255, 0)
    pixels[4:, :4], pixels[4:, 4:] = (0, 0, 255), (255, 255, 255)
    return Image.fromarray(pixels)


def corners(image: Tensor) -> list[list[int]]:
    last = image.shape[0] - 1
    return [image[y, x].tolist() for y in (0, last) for x in (0, last)]


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


# What can be read


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".gif", ".webp", ".jpg", ".JPEG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    lossless = {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": 0}
    quarters().save(path, **lossless)
    image = read_image(path, SIZE)
    assert image.shape == (SIZE, SIZE, 3)
    difference = image.float() - torch.from_numpy(np.array(quarters())).float()
    assert difference.abs().max() <= (6 if suffix.lower() in (".jpg", ".jpeg") else 0)
    assert images_in(tmp_path) == [path]


#: Where each corner of the stored image is seen, by EXIF orientation.
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
    assert corners(read_image(tmp_path / "photo.png", SIZE)) == ORIENTATIONS[orientation]


def test_the_middle_square_is_scaled(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = (10, 200, 30)
    for name, array in (("wide.png", pixels), ("tall.png", pixels.swapaxes(0, 1))):
        Image.fromarray(np.ascontiguousarray(array)).save(tmp_path / name)
        assert (read_image(tmp_path / name, 40) == torch.tensor([10, 200, 30])).all()
        # Near its edges the filter sees a little of what is cut off.
        small = read_image(tmp_path / name, 10).float()
        assert (small - torch.tensor([10, 200, 30])).abs().max() <= 20


def modes() -> dict[str, tuple[Image.Image, list[list[int]]]]:
    """Images of every mode, with the colours of their corners."""
    grey, whole = quarters().convert("L"), quarters().convert("RGBA")
    bits = grey.point(lambda v: 255 * (v > 100)).convert("1")
    whole.paste((1, 2, 3, 0), (4, 0, 8, 4))  # nothing is seen of this colour
    whole.paste((0, 0, 0, 128), (0, 4, 4, 8))
    glass = Image.new("LA", (SIZE, SIZE), (0, 0))
    glass.paste((50, 255), (0, 0, 4, 8))
    palette = Image.new("P", (SIZE, SIZE))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.paste(1, (4, 0, 8, 8))
    palette.info["transparency"] = 0
    few = quarters().convert("P", palette=Image.Palette.ADAPTIVE)
    return {
        "grey": (grey, [[76] * 3, [150] * 3, [29] * 3, WHITE]),
        "one bit": (bits, [[0] * 3, WHITE, [0] * 3, WHITE]),
        "palette": (few, [RED, GREEN, BLUE, WHITE]),
        "transparent": (whole, [RED, WHITE, [127] * 3, WHITE]),
        "transparent grey": (glass, [[50] * 3, WHITE, [50] * 3, WHITE]),
        "transparent palette": (palette, [WHITE, [0, 0, 200], WHITE, [0, 0, 200]]),
    }


@pytest.mark.parametrize("mode", modes())
def test_modes(tmp_path: Path, mode: str) -> None:
    image, expected = modes()[mode]
    image.save(tmp_path / "image.png")
    found = corners(read_image(tmp_path / "image.png", SIZE))
    assert np.abs(np.array(found) - expected).max() <= 1


# What cannot


def refused(path: Path, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path, SIZE)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "must be a file.*check the path")
    refused(tmp_path, "must be a file")


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg></svg>", b"\x89PNG\r\n\x1a\n"])
def test_not_a_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    refused(tmp_path / "x.png", "must be a whole image file.*export it")


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
def test_damage_anywhere_gives_a_image_or_one_line(
    tmp_path: Path, whole: bytes, damage: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(whole)
    for position, value in damage:
        content[position % len(content)] = value
    path = tmp_path / "damaged"
    path.write_bytes(content[: len(content) - cut // 4])
    try:
        assert read_image(path, SIZE).shape == (SIZE, SIZE, 3)
    except ImageError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


# Folders and tensors


def test_tensors_and_images() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    unit = to_unit_range(images)
    assert unit.shape == (1, 3, 16, 16)
    assert (unit.min(), unit.max()) == (-1, 1)
    assert ((unit[0, 0] + 1) * 127.5).round().to(torch.uint8).equal(images[0, ..., 0])
    assert np.array_equal(np.array(to_image(images[0])), images[0].numpy())


# Photos as telephones, cameras and other systems make them


def exif(odd: tuple[int, int, int, bytes] | None, orientation: bytes = b"\6\0") -> bytes:
    """EXIF in which the image is turned, and another tag: its number, type, count and bytes."""
    entries = sorted([(0x112, 3, 1, orientation), *([odd] if odd else [])])
    body, place = b"", 8 + 2 + 12 * len(entries) + 4
    table = struct.pack("<H", len(entries))
    for tag, kind, count, data in entries:
        if len(data) > 4:
            data, body, place = struct.pack("<I", place), body + data, place + len(data)
        table += struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0")
    return b"Exif\0\0II*\0\x08\0\0\0" + table + bytes(4) + body


ODD: dict[str, tuple[int, int, int, bytes]] = {
    "negative resolution": (0x11A, 10, 1, struct.pack("<ii", -1, 0)),
    "unit as text": (0x128, 2, 2, b"2\0"),
    "maker as rational": (0x10F, 5, 1, struct.pack("<II", 1, 2)),
    "resolution as text": (0x11A, 2, 3, b"72\0"),
    "negative unit": (0x128, 8, 1, struct.pack("<h", -2)),
    "unknown type": (0x10F, 99, 1, b"\1\2\3\4"),
    "count beyond the file": (0x10F, 2, 0x7FFFFFFF, b"\x08\0\0\0"),
    "place of the camera's own": (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "GPS as text": (0x8825, 2, 4, b"abc\0"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_of_exif_only_the_orientation_matters(tmp_path: Path, odd: str, suffix: str) -> None:
    whole, strange = tmp_path / f"whole{suffix}", tmp_path / f"strange{suffix}"
    quarters().save(whole, quality=95, exif=exif(None))
    quarters().save(strange, quality=95, exif=exif(ODD[odd]))
    found = read_image(strange, SIZE)
    assert found.equal(read_image(whole, SIZE))
    assert np.abs(np.array(corners(found)) - ORIENTATIONS[6]).max() < 90


@pytest.mark.parametrize("orientation", [b"\0\0", b"\x09\0", b"\xff\xff"])
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, orientation: bytes) -> None:
    quarters().save(tmp_path / "a.png", exif=exif(None, orientation))
    assert corners(read_image(tmp_path / "a.png", SIZE)) == ORIENTATIONS[1]


def profile(corners: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    """An ICC profile of version 2: three primaries, scaled to the white D50, and a gamma."""

    def fixed(values: Any) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    white = np.array([0.9642, 1.0, 0.8249])
    matrix = np.array([[x / y, 1, (1 - x - y) / y] for x, y in corners]).T
    matrix = matrix * np.linalg.solve(matrix, white)
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(gamma * 256), 0)
    said = b"desc" + bytes(4) + struct.pack(">I", 5) + b"wide\0" + bytes(79)
    parts: dict[bytes, Any] = {b"desc": said, b"cprt": b"text" + bytes(4) + b"none\0\0\0\0"}
    parts |= {b"wtpt": white, **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True))}
    parts |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, start = struct.pack(">I", len(parts)), b"", 132 + 12 * len(parts)
    for name, part in parts.items():
        data = part if isinstance(part, bytes) else b"XYZ " + bytes(4) + fixed(part)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI", start + len(body), 0x02100000) + b"mntrRGB XYZ " + bytes(12)
    return (head + b"acsp" + bytes(28) + fixed(white)).ljust(128, b"\0") + table + body


WIDE = {
    "Display P3": profile(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), 2.2),
    "Adobe RGB": profile(((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)), 2.2),
    "ProPhoto": profile(((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), 1.8),
}


def soft() -> Image.Image:
    """Colours that every profile has."""
    grid = np.mgrid[0:SIZE, 0:SIZE] * (100 // SIZE) + 80
    return Image.fromarray(np.stack([grid[0], grid[1], 256 - grid[0]], -1).astype(np.uint8))


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_the_embedded_profile_says_what_colours_mean(tmp_path: Path, name: str, mode: str) -> None:
    wide, srgb = ImageCms.ImageCmsProfile(io.BytesIO(WIDE[name])), ImageCms.createProfile("sRGB")
    changed = ImageCms.profileToProfile(soft(), srgb, wide, renderingIntent=1)
    assert np.abs(np.array(changed).astype(int) - np.array(soft())).max() > 8
    changed = changed.quantize(64) if mode == "P" else changed.convert(mode)
    changed.save(tmp_path / "wide.png", icc_profile=WIDE[name])
    found = read_image(tmp_path / "wide.png", SIZE).numpy().astype(int)
    assert np.abs(found - np.array(soft())).max() <= (12 if mode == "P" else 3)


def test_profiles_of_grey_and_of_ink_and_transparency(tmp_path: Path) -> None:
    grey = soft().convert("L")
    grey.save(tmp_path / "grey.png", icc_profile=WIDE["Display P3"])  # which is none of grey
    found = read_image(tmp_path / "grey.png", SIZE).numpy()
    assert (found == np.array(grey)[..., None]).all()
    ink = Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0))
    ink.save(tmp_path / "ink.jpg", quality=100, icc_profile=WIDE["Adobe RGB"])
    assert (
        read_image(tmp_path / "ink.jpg", SIZE).float().mean((0, 1)) - torch.tensor([255, 0, 0])
    ).abs().max() < 9
    glass = Image.new("RGBA", (SIZE, SIZE), (10, 20, 30, 0))
    glass.save(tmp_path / "glass.png", icc_profile=WIDE["ProPhoto"])
    assert corners(read_image(tmp_path / "glass.png", SIZE)) == [WHITE] * 4


@pytest.mark.parametrize("icc", [b"x", WIDE["ProPhoto"][:200], bytes(500), b"\xff" * 3000])
def test_a_damaged_profile_is_passed_over(tmp_path: Path, icc: bytes) -> None:
    for suffix in (".png", ".webp", ".tif"):
        quarters().save(
            tmp_path / f"a{suffix}",
            icc_profile=icc,
            **{"lossless": True} if suffix == ".webp" else {},
        )
        assert corners(read_image(tmp_path / f"a{suffix}", SIZE)) == ORIENTATIONS[1]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_images_the_first_is_used_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.png", format, save_all=True, append_images=frames[1:])
    found = read_image(tmp_path / "a.png", SIZE).float()
    assert (found - torch.tensor(RED)).abs().max() <= 3
    assert "a.png has several images: the first is used" in capsys.readouterr().err
    frames[0].save(tmp_path / "b.png", "MPO", save_all=True, append_images=frames[1:])
    read_image(tmp_path / "b.png", SIZE)  # a photo and what a telephone keeps beside it
    assert capsys.readouterr().err == ""


OTHERS = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n",
    "DDS": b"DDS " + struct.pack("<IIII", 124, 0x1007, 8, 8) + bytes(176),
    "IM": b"Image type: RGB image\r\nImage size (x*y): .20*24.\r\n\x1a".ljust(2500, b"\0"),
    "PDF": b"%PDF-1.7\n",
    "HEIC, which needs an extra": b"\0\0\0\x18ftypheic" + bytes(60),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_refused_and_start_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for place, name in ((subprocess, "Popen"), (os, "system"), (Image.Image, "load")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("something was started"))
    monkeypatch.setattr("lorasynth.images.files._reads_heic", lambda: False)
    (tmp_path / "photo.png").write_bytes(OTHERS[kind])
    refused(tmp_path / "photo.png", kind if "HEIC" in kind else "export it as one of these")


def test_heic_is_read_where_its_reader_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    quarters().resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "a.HEIC", quality=100)
    found = np.array(corners(read_image(tmp_path / "a.HEIC", SIZE)))
    assert np.abs(found - ORIENTATIONS[1]).max() < 40


def damaged_avif() -> dict[str, bytes]:
    data = io.BytesIO()
    quarters().resize((64, 64)).save(data, "AVIF")
    whole = data.getvalue()
    start = whole.index(b"mdat") + 4
    return {"planes": whole[:start] + bytes(b ^ 0xFF for b in whole[start:]), "item": whole[:start]}


@pytest.mark.parametrize("name", ["planes", "item"])
def test_a_damaged_avif_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(damaged_avif()[name])
    refused(tmp_path / "a.jpg", "must be a whole image file")


@pytest.mark.parametrize(
    "error", [RuntimeError, TypeError, AttributeError, MemoryError, RecursionError, struct.error]
)
def test_whatever_a_reader_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    quarters().save(tmp_path / "a.png")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fails)
    refused(tmp_path / "a.png", error.__name__)


def test_what_is_too_large_or_no_file_is_not_read(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb+") as file:
        file.truncate(MAX_BYTES + 1)
    refused(tmp_path / "a.png", "may have 64 MB")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "must be a file")
    refused(Path("/dev/zero"), "must be a file")
