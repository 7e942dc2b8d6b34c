"""Subjects as folders of photos."""

from pathlib import Path

import pytest
import torch

from lorasynth.errors import PictureError
from lorasynth.pictures import FolderSubjects, to_image


def photo(path: Path, brightness: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(torch.full((side, side, 3), brightness, dtype=torch.uint8)).save(path)


@pytest.fixture
def source(tmp_path: Path) -> FolderSubjects:
    for subject, brightness in (("zoë", 10), ("adam", 90)):
        for name in ("2.png", "1.png", "10.png"):
            photo(tmp_path / subject / name, brightness + int(name.split(".")[0]))
    (tmp_path / "zoë" / "1.txt").write_text("sks, smiling\n", encoding="utf-8")
    (tmp_path / "zoë" / "2.txt").write_text("sks, café", encoding="utf-8-sig")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read me.txt").touch()
    photo(tmp_path / "stray.png", 0)
    return FolderSubjects(tmp_path, default_caption="sks")


def test_a_subject_is_a_folder_with_pictures(source: FolderSubjects) -> None:
    assert source.ids == ["adam", "zoë"]


def test_each_picture_has_the_caption_of_its_text_file(source: FolderSubjects) -> None:
    zoe = source.load("zoë")
    assert zoe.pictures[:, 0, 0, 0].tolist() == [11, 20, 12]  # 1, 10, 2: sorted by name
    assert zoe.captions == ["sks, smiling", "sks", "sks, café"]
    assert source.load("adam").captions == ["sks"] * 3


def test_a_bad_picture_spoils_only_its_subject(source: FolderSubjects) -> None:
    (source.root / "zoë" / "10.png").write_bytes(b"no")
    with pytest.raises(PictureError, match=r"whole image file.*10\.png"):
        source.load("zoë")
    assert len(source.load("adam").pictures) == 3


def test_a_bad_caption_is_told_in_one_line(source: FolderSubjects) -> None:
    (source.root / "adam" / "1.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(PictureError, match=r"must be text in UTF-8, but .*1\.txt") as caught:
        source.load("adam")
    assert "\n" not in str(caught.value)


def test_no_such_subject_or_folder(source: FolderSubjects) -> None:
    for name in ("eve", "empty", "stray.png"):
        with pytest.raises(PictureError, match=f"'{name}' is none: check the name"):
            source.load(name)
    with pytest.raises(PictureError, match="is not a folder"):
        _ = FolderSubjects(source.root / "none").ids
    with pytest.raises(PictureError, match="is not a folder"):
        _ = FolderSubjects(source.root / "stray.png").ids
