"""Every kind of damage is found, and named in one line that says where."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lorasynth.errors import LibraryError
from lorasynth.library import Library
from lorasynth.library.shard import Shard, write_shard


def flip_byte(path: Path, position: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {
    "missing": (Path.unlink, "is missing"),
    "truncated": (truncate, "bytes, but was written with"),
    "flipped": (flip_byte, "has changed since it was written"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["vectors.npy", "factors.safetensors", "subjects.parquet"])
def test_a_damaged_file_is_named(fill, tmp_path: Path, file: str, damage: str) -> None:
    fill(tmp_path / "lib", 2, 4, 5)
    change, message = DAMAGES[damage]
    change(tmp_path / "lib/shards/000001" / file)
    report = Library.open(tmp_path / "lib").check()
    assert report.shards == 3
    assert report.adapters == 3
    [line] = report.damages
    assert line.startswith(f"shard 000001: {file} {message}" if damage != "truncated" else "shard")
    assert message in line
    assert "\n" not in line


def test_what_learns_is_told_of_a_flipped_bit(fill, tmp_path: Path) -> None:
    fill(tmp_path / "lib", 2, 4, 5)
    Library.open(tmp_path / "lib").require_intact()
    flip_byte(tmp_path / "lib/shards/000001/vectors.npy")
    library = Library.open(tmp_path / "lib")
    with pytest.raises(
        LibraryError, match=r"shard 000001: vectors.npy .*SHA-256 differs"
    ) as caught:
        library.require_intact()
    assert "\n" not in str(caught.value)
    with pytest.raises(LibraryError, match="shard 000001"):
        library.select([0, 3]).require_intact()
    library.select([0, 1, 4]).require_intact()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": 2}', '{"rows": 2, "files": {}}'])
def test_damaged_checksums_are_named(fill, tmp_path: Path, content: str) -> None:
    fill(tmp_path / "lib", 2)
    (tmp_path / "lib/shards/000000/checksums.json").write_text(content)
    [line] = Library.open(tmp_path / "lib").check().damages
    assert line.startswith("shard 000000")
    assert "\n" not in line


def test_each_damaged_shard_has_a_line(fill, tmp_path: Path) -> None:
    fill(tmp_path / "lib", 1, 2, 3)
    for name in ("000000", "000002"):
        truncate(tmp_path / "lib/shards" / name / "vectors.npy")
    lines = Library.open(tmp_path / "lib").check().damages
    assert [line[:12] for line in lines] == ["shard 000000", "shard 000002"]


def test_wrong_content_with_right_checksums_is_found(fill, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", 2)
    shard = Shard(tmp_path / "lib/shards/000000", library.layout)
    factors, table = shard.factors([0, 1]), shard.subjects
    good = shard.vectors.all_vectors()
    cases = {
        "it has the shape": good[:, 1:],
        "non-finite": torch.full_like(good, torch.nan),
        "subjects.parquet has 2 rows for 1": good[:1],
    }
    for number, (message, vectors) in enumerate(cases.items(), start=1):
        path = tmp_path / f"{number:06d}"
        write_shard(path, vectors, factors, table)
        [line] = Shard(path, library.layout).damages()
        assert message in line


def test_reading_a_damaged_shard_is_one_line(fill, tmp_path: Path) -> None:
    fill(tmp_path / "lib", 2)
    for file in ("vectors.npy", "factors.safetensors", "subjects.parquet"):
        (tmp_path / "lib/shards/000000" / file).write_bytes(b"short")
    library = Library.open(tmp_path / "lib")
    for read in (library.all_vectors, lambda: library.factors([0]), lambda: library.table):
        with pytest.raises(LibraryError, match=r"shard 000000: .* cannot be used") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_pickle_in_an_npy_is_not_loaded(fill, tmp_path: Path) -> None:
    fill(tmp_path / "lib", 1)
    path = tmp_path / "lib/shards/000000/vectors.npy"
    np.save(path, np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(LibraryError, match="cannot be used"):
        Library.open(tmp_path / "lib").all_vectors()


def test_a_changed_reference_is_found(fill, make_factors, make_subjects, tmp_path: Path) -> None:
    fill(tmp_path / "lib", 1)
    flip_byte(tmp_path / "lib/reference.safetensors")
    library = Library.open(tmp_path / "lib")
    [line] = library.check().damages
    assert "has changed since the library began" in line
    with pytest.raises(LibraryError, match="has changed"):
        library.append(make_factors(1, 2), make_subjects(1, 2))
    (tmp_path / "lib/reference.safetensors").unlink()
    assert "must be readable" in library.check().damages[0]


def test_damaged_columns_are_found(fill, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", 2, 3)
    library.attach("loss", torch.arange(3.0))
    assert library.check().damages == ()
    path = tmp_path / "lib/columns/loss.safetensors"
    flip_byte(path)
    assert "has changed since it was written" in library.check().damages[0]
    truncate(path)
    assert "cannot be read" in library.check().damages[0]


def test_a_column_of_other_rows_is_found(fill, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", 2, 3)
    library.attach("loss", torch.arange(3.0))
    (tmp_path / "lib/shards/000000").rename(tmp_path / "lost")
    assert "belongs to other adapters" in Library.open(tmp_path / "lib").check().damages[0]
