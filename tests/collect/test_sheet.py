"""A sheet shows what is trained on, at a size that can be looked at."""

from pathlib import Path

import torch
from PIL import Image

from lorasynth.collect.sheet import write_sheet
from lorasynth.images import Subject


def test_large_squares_are_drawn_small_and_few_images_take_no_room(tmp_path: Path) -> None:
    def subject(count: int) -> Subject:
        photos = torch.full((count, 400, 400, 3), 90, dtype=torch.uint8)
        return Subject(id=f"with {count}", photos=photos, captions=[""] * count)

    write_sheet(tmp_path / "sheet.png", map(subject, [1, 3]))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 2 * 160 + 2
        assert 3 * 160 + 2 * 2 < sheet.width < 5 * 160
