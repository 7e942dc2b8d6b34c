"""Every kind of damage is found, and named in one line that says where."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lorasynth.core.checksums import file_hash
from lorasynth.core.errors import LibraryError
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


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"rows": 2}', '{"rows": 2, "files": {}}'),
        *('{"rows": 2147483648, "files": {}}', '{"rows": -1, "files": {}}'),
    ],
)
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
    (tmp_path / "lib/shards/000001").rename(tmp_path / "lib/shards/000000")
    stated = tmp_path / "lib/library.json"
    stated.write_text(stated.read_text().replace('"shards": 2', '"shards": 1'))
    assert "belongs to other adapters" in Library.open(tmp_path / "lib").check().damages[0]


@pytest.mark.parametrize("name", ["000000.bak", "000000 (copy)", "0", "00000", "000000x"])
def test_a_copy_of_a_shard_is_no_shard(
    fill, make_factors, make_subjects, tmp_path: Path, name: str
) -> None:
    fill(tmp_path / "lib", 2, 4)
    shards = tmp_path / "lib/shards"
    shutil.copytree(shards / "000000", shards / name)
    library = Library.open(tmp_path / "lib")
    assert library.ids == ["s0", "s1", "s2", "s3"]
    [line] = library.check().damages
    assert line.startswith(f"{shards / name} is no shard")
    library.append(make_factors(4, 5), make_subjects(4, 5))
    assert len(Library.open(tmp_path / "lib")) == 5


@pytest.mark.parametrize("name", ["000002", "000009", "0000001"])
def test_adapters_that_are_there_twice_are_found_and_not_learned_from(
    fill, tmp_path: Path, name: str
) -> None:
    fill(tmp_path / "lib", 2, 4)
    shutil.copytree(tmp_path / "lib/shards/000001", tmp_path / "lib/shards" / name)
    library = Library.open(tmp_path / "lib")
    lines = library.check().damages
    assert any("subject 's2' is in shard" in line for line in lines), lines
    for learns in (library, library.select([0])):
        with pytest.raises(LibraryError, match="a library must be whole, but"):
            learns.require_intact()


@pytest.mark.parametrize("lost", ["000000", "000001", "000002"])
def test_a_shard_that_is_missing_is_found_and_its_number_not_taken_again(
    fill, make_factors, make_subjects, tmp_path: Path, lost: str
) -> None:
    fill(tmp_path / "lib", 1, 2, 3)
    shutil.rmtree(tmp_path / "lib/shards" / lost)
    library = Library.open(tmp_path / "lib")
    [line] = library.check().damages
    assert line.startswith(f"shard {lost} of {tmp_path / 'lib'} is missing")
    with pytest.raises(LibraryError, match=f"shard {lost}.*is missing"):
        library.require_intact()
    library.append(make_factors(3, 4), make_subjects(3, 4))
    assert (tmp_path / "lib/shards/000003").is_dir()
    assert not (tmp_path / "lib/shards" / lost).exists()


def test_a_library_that_counted_no_shards_is_intact(fill, tmp_path: Path) -> None:
    fill(tmp_path / "lib", 1, 2)
    stated = tmp_path / "lib/library.json"
    stated.write_text(stated.read_text().replace('"shards": 2', '"shards": 0'))
    assert Library.open(tmp_path / "lib").check().damages == ()


@pytest.mark.parametrize("dtype", [">f4", ">f2", "<f8", "<i4"])
def test_vectors_of_another_byte_order_or_type_are_found(fill, tmp_path: Path, dtype: str) -> None:
    library = fill(tmp_path / "lib", 2)
    path = tmp_path / "lib/shards/000000/vectors.npy"
    np.save(path, library.all_vectors().numpy().astype(dtype))
    stated = json.loads(path.with_name("checksums.json").read_text())
    stated["files"]["vectors.npy"] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    path.with_name("checksums.json").write_text(json.dumps(stated))
    [line] = Library.open(tmp_path / "lib").check().damages
    assert "vectors.npy" in line


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), OSError(30, "read-only"), NotImplementedError()]
)
def test_a_library_that_cannot_be_written_is_one_line(
    fill, make_factors, make_subjects, tmp_path: Path, monkeypatch, error: Exception
) -> None:
    library = fill(tmp_path / "lib", 2)

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock._acquire", fails)
    for write in (
        lambda: library.append(make_factors(2, 3), make_subjects(2, 3)),
        lambda: library.attach("x", torch.zeros(2)),
        lambda: Library.create(tmp_path / "new", library.layout),
    ):
        with pytest.raises(LibraryError, match="a library must be writable, but"):
            write()
    assert len(Library.open(tmp_path / "lib")) == 2


def test_of_two_that_create_one_library_the_second_finds_the_firsts(layout, tmp_path: Path) -> None:
    made, refused = [], []

    def create(number: int) -> None:
        try:
            made.append(Library.create(tmp_path / "lib", layout, str(number)))
        except LibraryError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all("is a library" in line or "is writing" in line for line in refused)
    assert Library.open(tmp_path / "lib").info == made[0].info
