"""Subjects in tar files with webdataset's names."""

import io
import os
import tarfile
import time
from pathlib import Path

import pytest
import torch

from lorasynth.core.errors import ImageError
from lorasynth.images import to_image
from lorasynth.images.tars import TarSubjects


def image(brightness: int, height: int = 12, width: int = 12, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    to_image(torch.full((height, width, 3), brightness, dtype=torch.uint8)).save(file, kind)
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
            "./zoë.b.1.png": image(11),
            "./zoë.b.1.txt": "sks, café\n".encode(),
            "faces/adam.0.PNG": image(90),
            "faces/adam.0.json": b"{}",
            "nobody.0.txt": b"sks",
            "read me": b"",
        },
    )
    write(tmp_path / "b.tar", {"zoë.b.0.png": image(10), "faces/adam.1.png": image(91)})
    return TarSubjects(tmp_path, default_caption="sks")


def test_a_subject_is_named_by_its_files_and_may_be_in_several_tars(source: TarSubjects) -> None:
    assert source.ids == ["faces/adam", "zoë.b"]
    zoe = source.load("zoë.b")
    assert zoe.images[:, 0, 0, 0].tolist() == [10, 11]
    assert zoe.captions == ["sks", "sks, café"]
    assert source.load("faces/adam").images[:, 0, 0, 0].tolist() == [90, 91]


def test_one_tar_is_a_source(source: TarSubjects) -> None:
    assert TarSubjects(source.root / "b.tar").ids == ["faces/adam", "zoë.b"]


def test_a_bad_image_spoils_only_its_subject(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"ann.0.png": image(1)[:40], "ben.0.png": image(2)})
    source = TarSubjects(tmp_path)
    with pytest.raises(ImageError, match=r"whole image file.*ann\.0\.png of .*a\.tar"):
        source.load("ann")
    assert len(source.load("ben").images) == 1


def test_what_is_no_tar_is_told_in_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", {"ann.0.png": bytes(2000)})
    cut, packed = tmp_path / "cut.tar", tmp_path / "packed.tar"
    cut.write_bytes(whole.read_bytes()[:1500])
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(whole, "ann.0.png")
    (tmp_path / "text.tar").write_text("no")
    for path in (cut, packed, tmp_path / "text.tar", tmp_path / "none.tar"):
        with pytest.raises(ImageError, match=f"but .*{path.name} is not one") as caught:
            _ = TarSubjects(path).ids
        assert "\n" not in str(caught.value)


def test_captions_and_names(source: TarSubjects, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="'nobody' has none"):
        source.load("nobody")
    path = write(tmp_path / "c.tar", {"ann.0.png": image(1), "ann.0.txt": b"caf\xe9"})
    with pytest.raises(ImageError, match=r"UTF-8, but ann\.0\.txt of .*c\.tar"):
        TarSubjects(path).load("ann")


# Tars that are damaged, or made to do damage


def header(name: str, size: int, kind: bytes = b"0", stated: bytes | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if stated is not None:
        block[124:136] = stated
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


ANN = header("ann.0.png", len(image(7))) + padded(image(7))
HOLES = b"25 GNU.sparse.map=0,1,xx\n22 GNU.sparse.size=50\n"
END = bytes(1024)
DAMAGED = {
    "negative size": ANN + header("bob.0.png", 0, stated=b"\xff" * 10 + b"\xfc\x00") + ANN + END,
    "huge size": header("bob.0.png", 0, stated=b"\x80" + b"\xff" * 11) + ANN + END,
    "size that is none": header("bob.0.png", 0, stated=b"99999999999\0") + ANN + END,
    "wrong checksum": ANN + header("bob.0.png", 0).replace(b"bob", b"eve") + END,
    "cut in a header": ANN + header("bob.0.png", 9)[:300],
    "cut in an image": ANN + header("bob.0.png", 900) + b"x" * 100,
    "cut after an image": ANN,
    "one empty block": ANN + bytes(512),
    "empty": b"",
    "long name without end": header("x", 1 << 30, b"L") + ANN + END,
    "odd extended header": header("x", 9, b"x") + padded(b"99999999 ") + ANN + END,
    "endless extended header": header("x", 9, b"x") + padded(b"0 path=a\n") + ANN + END,
    "size elsewhere": header("x", 19, b"x") + padded(b"19 size=1000000000\n") + ANN + END,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_tar_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a.tar").write_bytes(DAMAGED[damage])
    with pytest.raises(ImageError, match=r"whole and not compressed, but .*a\.tar") as caught:
        _ = TarSubjects(tmp_path / "a.tar").ids
    assert "\n" not in str(caught.value)


def test_many_headers_before_a_file_are_no_depth(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes((header("x", 4, b"L") + padded(b"a.1\0")) * 3000 + ANN + END)
    assert TarSubjects(tmp_path / "a.tar").ids == []
    names = (header("x", 9, b"L") + padded(b"bob.1.png")) * 3000
    (tmp_path / "b.tar").write_bytes(names + ANN + END)
    assert TarSubjects(tmp_path / "b.tar").ids == ["bob"]


def test_files_with_holes_and_of_systems_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plain(name: str) -> bytes:
        return header(name, len(image(7))) + padded(image(7))

    old = bytearray(header("eve.0.png", 512, b"S"))
    old[482] = 1  # a block with more of its holes comes before its data
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    new = header("p", len(HOLES), b"x") + padded(HOLES) + plain("dan.0.png")
    systems = [plain(name) for name in ("__MACOSX/a.0.png", "a/._a.0.png", ".cache/a.0.png")]
    parts = [new, bytes(old) + bytes(1024), *systems, plain("ann.1.pdf"), ANN, END]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    assert TarSubjects(tmp_path / "a.tar").ids == ["ann"]
    line = capsys.readouterr().err
    assert "1 image of 1 subject, 1 without a caption" in line
    assert "3 hidden or a system's" in line
    assert "1 other files (ann.1.pdf)" in line


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [("ann.1.png", 3_000_000_000, "may have 64 MB"), ("ann.0.txt", 400_000_000, "may have 64 kB")],
)
def test_what_is_too_large_is_refused_unread(
    tmp_path: Path, name: str, size: int, said: str
) -> None:
    start = ANN + header(name, size)
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(start)
        file.truncate(len(start) + -(-size // 512) * 512 + 1024)  # takes no disk
    source = TarSubjects(tmp_path / "a.tar")
    began = time.monotonic()
    with pytest.raises(ImageError, match=said):
        source.load("ann")
    assert time.monotonic() - began < 1


def test_two_images_of_one_number_are_two_and_one_name_in_two_tars_is_refused(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.tar", {"ann.0.png": image(8), "ann.0.BMP": image(9, kind="BMP")})
    assert sorted(TarSubjects(tmp_path).load("ann").images[:, 0, 0, 0].tolist()) == [8, 9]
    write(tmp_path / "b.tar", {"ann.0.png": image(7)})
    with pytest.raises(ImageError, match=r"ann\.0\.png is in .*a\.tar and in .*b\.tar"):
        _ = TarSubjects(tmp_path).ids


def test_a_device_is_no_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    for path in (tmp_path / "pipe.tar", Path("/dev/zero")):
        with pytest.raises(ImageError, match="it is no file"):
            _ = TarSubjects(path).ids


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_as_tar_programs_write_them(
    tmp_path: Path, kind: int
) -> None:
    names = [f"{'folder/' * 12}zoë.{number}.png" for number in range(2)]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(image(4))
            tar.addfile(entry, io.BytesIO(image(4)))
    source = TarSubjects(tmp_path / "a.tar")
    assert source.ids == [names[0].removesuffix(".0.png")]
    assert len(source.load(source.ids[0]).images) == 2
