"""Subjects as folders of photos."""

import os
import sys
from pathlib import Path

import pytest
import torch

from lorasynth.core.errors import ImageError
from lorasynth.images import FolderSubjects, to_image


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


def test_a_subject_is_a_folder_with_images(source: FolderSubjects) -> None:
    assert source.ids == ["adam", "zoë"]


def test_each_image_has_the_caption_of_its_text_file(source: FolderSubjects) -> None:
    zoe = source.load("zoë")
    assert zoe.images[:, 0, 0, 0].tolist() == [11, 20, 12]  # 1, 10, 2: sorted by name
    assert zoe.captions == ["sks, smiling", "sks", "sks, café"]
    assert source.load("adam").captions == ["sks"] * 3


def test_a_bad_image_spoils_only_its_subject(source: FolderSubjects) -> None:
    (source.root / "zoë" / "10.png").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"whole image file.*10\.png"):
        source.load("zoë")
    assert len(source.load("adam").images) == 3


def test_a_bad_caption_is_told_in_one_line(source: FolderSubjects) -> None:
    (source.root / "adam" / "1.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ImageError, match=r"must be text in UTF-8, but .*1\.txt") as caught:
        source.load("adam")
    assert "\n" not in str(caught.value)


def test_no_such_subject_or_folder(source: FolderSubjects) -> None:
    for name in ("eve", "empty", "stray.png"):
        with pytest.raises(ImageError, match=f"'{name}' is none: check the name"):
            source.load(name)
    with pytest.raises(ImageError, match="is not a folder"):
        _ = FolderSubjects(source.root / "none").ids
    with pytest.raises(ImageError, match="is not a folder"):
        _ = FolderSubjects(source.root / "stray.png").ids


# Folders as people and their systems leave them


def summary(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_what_systems_leave_is_no_image_and_no_subject(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ann/a.png", "ann/B.JPG", "bob/a.jpg", ".thumbnails/a.png", "@eaDir/a.png"):
        photo(tmp_path / name, 50)
    (tmp_path / "bob/a.jpg").rename(tmp_path / "bob/a.jfif")
    (tmp_path / "__MACOSX/ann").mkdir(parents=True)
    system = ("ann/._a.png", "ann/.DS_Store", "ann/Thumbs.db", "bob/desktop.ini", "._.png")
    for name in system:
        (tmp_path / name).write_bytes(b"\0\5\x16\7 no image")
    source = FolderSubjects(tmp_path)
    assert source.ids == ["ann", "bob"]
    assert len(source.load("ann").images) == 2
    line = summary(capsys)
    assert f"{tmp_path}: 3 images of 2 subjects, 3 without a caption" in line
    assert "8 hidden or a system's" in line


def test_every_image_that_is_not_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorasynth.images.files._reads_heic", lambda: False)
    photo(tmp_path / "ann/a.png", 50)
    for name in ("ann/IMG_1.HEIC", "ann/raw.CR2", "ann/notes.pdf", "ann/list.csv", "eve/b.heif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "ann/gone.png").symlink_to(tmp_path / "nothing")
    assert FolderSubjects(tmp_path).ids == ["ann"]
    line = summary(capsys)
    assert "1 image of 1 subject," in line
    for said in ("2 HEIC, which needs pip install '.[heic]' in",
                 "3 other files (list.csv, notes.pdf, raw.CR2)",
                 "1 links to nothing, or no files (gone.png)",
                 "1 folders without images (eve)"):  # fmt: skip
        assert said in line, (said, line)


def test_links_are_followed_and_circles_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "people"
    photo(tmp_path / "elsewhere/ann/a.png", 50)
    photo(root / "bob/a.png", 50)
    photo(tmp_path / "stray.png", 50)
    (root / "ann").symlink_to(tmp_path / "elsewhere/ann")
    for name, target in (("loop", root), ("up", tmp_path)):
        (root / name).symlink_to(target)
    assert FolderSubjects(root).ids == ["ann", "bob"]
    assert "2 links in a circle (loop, up)" in summary(capsys)


def test_captions_have_either_suffix_in_any_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcd":
        photo(tmp_path / f"ann/{name}.png", 50)
    for name in ("a.TXT", "b.caption", "c.Caption"):
        (tmp_path / "ann" / name).write_text(f"of {name}")
    (tmp_path / "ann/a.caption").write_text("not this")
    (tmp_path / "ann/e.txt").write_text("of an image that is gone")
    source = FolderSubjects(tmp_path, "none")
    assert source.load("ann").captions == ["of a.TXT", "of b.caption", "of c.Caption", "none"]
    line = summary(capsys)
    assert "4 images of 1 subject, 1 without a caption" in line
    assert "1 captions without an image (e.txt)" in line


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know one of the two")
def test_names_that_differ_in_case_alone_are_two(tmp_path: Path) -> None:
    for name, brightness in (("Ann/a.png", 1), ("ann/a.png", 2), ("ann/A.PNG", 3)):
        photo(tmp_path / name, brightness)
    (tmp_path / "ann/A.txt").write_text("of A")
    source = FolderSubjects(tmp_path, "none")
    assert source.ids == ["Ann", "ann"]
    assert source.load("Ann").images[:, 0, 0, 0].tolist() == [1]
    ann = source.load("ann")
    seen = zip(ann.images[:, 0, 0, 0].tolist(), ann.captions, strict=True)
    assert sorted(seen) == [(2, "none"), (3, "of A")]


def test_a_caption_without_end_is_refused_unread(tmp_path: Path) -> None:
    photo(tmp_path / "ann/a.png", 50)
    with (tmp_path / "ann/a.txt").open("wb") as file:
        file.truncate(1 << 40)  # takes no disk
    with pytest.raises(ImageError, match=r"a caption may have 64 kB, but .*a\.txt has"):
        FolderSubjects(tmp_path).load("ann")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_listed_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ann", os.fsdecode(b"b\xffb")):
        photo(tmp_path / name / os.fsdecode(b"\xfe.png"), 50)
    source = FolderSubjects(tmp_path)
    assert source.ids == ["ann"]
    assert len(source.load("ann").images) == 1
    assert r"1 subjects whose names are no UTF-8 (b\udcffb)" in summary(capsys)


def test_names_act_on_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "ann\x1b[2J/a.png", 50)
    (tmp_path / "ann\x1b[2J/b\x07.pdf").touch()
    assert len(FolderSubjects(tmp_path).ids) == 1
    assert "\x1b" not in summary(capsys)
