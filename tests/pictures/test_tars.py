"""Subjects in tar files with webdataset's names."""

import io
import tarfile
from pathlib import Path

import pytest
import torch

from lorasynth.errors import PictureError
from lorasynth.pictures import TarSubjects, to_image


def picture(brightness: int) -> bytes:
    file = io.BytesIO()
    to_image(torch.full((12, 12, 3), brightness, dtype=torch.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def source(tmp_path: Path) -> TarSubjects:
    write(
        tmp_path / "a.tar",
        {
            "./zoë.b.1.png": picture(11),
            "./zoë.b.1.txt": "sks, café\n".encode(),
            "faces/adam.0.PNG": picture(90),
            "faces/adam.0.json": b"{}",
            "nobody.0.txt": b"sks",
            "read me": b"",
        },
    )
    write(tmp_path / "b.tar", {"zoë.b.0.png": picture(10), "faces/adam.1.png": picture(91)})
    return TarSubjects(tmp_path, default_caption="sks")


def test_a_subject_is_named_by_its_files_and_may_be_in_several_tars(source: TarSubjects) -> None:
    assert source.ids == ["faces/adam", "zoë.b"]
    zoe = source.load("zoë.b")
    assert zoe.pictures[:, 0, 0, 0].tolist() == [10, 11]
    assert zoe.captions == ["sks", "sks, café"]
    assert source.load("faces/adam").pictures[:, 0, 0, 0].tolist() == [90, 91]


def test_one_tar_is_a_source(source: TarSubjects) -> None:
    assert TarSubjects(source.root / "b.tar").ids == ["faces/adam", "zoë.b"]


def test_a_bad_picture_spoils_only_its_subject(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"ann.0.png": picture(1)[:40], "ben.0.png": picture(2)})
    source = TarSubjects(tmp_path)
    with pytest.raises(PictureError, match=r"whole image file.*ann\.0\.png of .*a\.tar"):
        source.load("ann")
    assert len(source.load("ben").pictures) == 1


def test_what_is_no_tar_is_told_in_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", {"ann.0.png": bytes(2000)})
    cut, packed = tmp_path / "cut.tar", tmp_path / "packed.tar"
    cut.write_bytes(whole.read_bytes()[:1500])
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(whole, "ann.0.png")
    (tmp_path / "text.tar").write_text("no")
    for path in (cut, packed, tmp_path / "text.tar", tmp_path / "none.tar"):
        with pytest.raises(PictureError, match=f"but .*{path.name} is not one") as caught:
            _ = TarSubjects(path).ids
        assert "\n" not in str(caught.value)


def test_captions_and_names(source: TarSubjects, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="'nobody' has none"):
        source.load("nobody")
    path = write(tmp_path / "c.tar", {"ann.0.png": picture(1), "ann.0.txt": b"caf\xe9"})
    with pytest.raises(PictureError, match=r"UTF-8, but ann\.0\.txt of .*c\.tar"):
        TarSubjects(path).load("ann")
