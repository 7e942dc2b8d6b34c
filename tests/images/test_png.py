"""PNG files say that they are synthetic; contact sheets keep every pixel in its place."""

from xml.etree import ElementTree

import torch
from PIL import Image

from lorasynth.images import read_photo
from lorasynth.images.png import SYNTHETIC, contact_sheet, write_synthetic


def test_a_file_keeps_pixels_and_says_what_it_is(tmp_path) -> None:
    image = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8)
    path = tmp_path / "new" / "image.png"
    write_synthetic(path, image, {"Description": "ein Bild, 日本\nzweite Zeile"})
    assert torch.equal(read_photo(path), image)
    with Image.open(path) as image:
        xmp = ElementTree.fromstring(image.info.pop("xmp"))  # as Pillow calls the same text
        stated = {name.split("}")[1]: value for name, value in xmp[0][0].attrib.items()}
        assert stated["DigitalSourceType"] == SYNTHETIC["DigitalSourceType"]
        assert image.info == {**SYNTHETIC, "Description": "ein Bild, 日本\nzweite Zeile"}


def test_a_sheet_fills_rows_and_leaves_the_rest_white() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 2, 3, 3)
    sheet = contact_sheet(images, columns=2, gap=1)
    assert sheet.shape == (8, 7, 3)
    for index, (top, left) in enumerate([(0, 0), (0, 4), (3, 0), (3, 4), (6, 0)]):
        assert (sheet[top : top + 2, left : left + 3] == index).all()
        sheet[top : top + 2, left : left + 3] = 255
    assert (sheet == 255).all()


def test_names_stand_beside_their_rows() -> None:
    images = torch.zeros(4, 40, 30, 3, dtype=torch.uint8)
    sheet = contact_sheet(images, columns=2, gap=2, names=["first", ""])
    bare = contact_sheet(images, columns=2, gap=2)
    margin = sheet.shape[1] - bare.shape[1]
    assert sheet[:, margin:].equal(bare)
    assert (sheet[:40, :margin] < 128).any()
    assert (sheet[40:, :margin] == 255).all()
