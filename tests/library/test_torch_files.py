"""Rows of a matrix that torch saved, where the file is larger than memory."""

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bounds import cheap
from lorasynth.core.errors import FileFormatError
from lorasynth.library.torch_files import SavedMatrix, load_small, load_tensors

VIEWS = {
    "whole": lambda x: x,
    "some rows": lambda x: x[1:],
    "every other row": lambda x: x[::2],
    "some columns": lambda x: x[:, 2:5],
    "columns before rows": lambda x: x.T,
    "one row many times": lambda x: x[:1].expand(4, -1),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_rows_of_whatever_was_saved(tmp_path: Path, view: str, dtype: torch.dtype) -> None:
    matrix = VIEWS[view](torch.arange(63).reshape(9, 7).to(dtype))
    torch.save(matrix, tmp_path / "matrix.pt")
    found = SavedMatrix.find(tmp_path / "matrix.pt")
    count = len(matrix)
    assert (found.shape, found.dtype) == (tuple(matrix.shape), dtype)
    for start, stop in ((0, count), (1, 3), (count - 1, count)):
        assert found.rows(start, stop).equal(matrix[start:stop].float())


def older(path: Path) -> None:
    torch.save(torch.zeros(3, 2), path, _use_new_zipfile_serialization=False)


def cut(path: Path) -> None:
    torch.save(torch.zeros(300, 20), path)
    path.write_bytes(path.read_bytes()[:9000])


def short(path: Path) -> None:
    """Says that it has more rows than it has."""
    torch.save(torch.zeros(300, 20), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content[:9000])


def of(value: Any) -> Any:
    return lambda path: torch.save(value, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (older, "must be a zip file, .* load it and save it again"),
        (cut, "must be a file of torch.save with tensors alone"),
        (short, "must hold 300 x 20 numbers up to byte"),
        (
            of(torch.zeros(7)),
            r"must hold one dense matrix of floating-point numbers, but holds \(7,\)",
        ),
        (
            of(torch.zeros(3, 2, dtype=torch.int64)),
            "must hold one dense matrix of floating-point numbers",
        ),
        (
            of({"a": torch.zeros(3, 2)}),
            "must hold one dense matrix of floating-point numbers, but holds dict",
        ),
        (of(torch.zeros(3, 2).to_sparse()), "must hold one dense matrix of floating-point numbers"),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / "matrix.pt")
    with pytest.raises(FileFormatError, match=message) as caught:
        SavedMatrix.find(tmp_path / "matrix.pt")
    assert "\n" not in str(caught.value)


def saved(path: Path, pickled: bytes, packing: int = zipfile.ZIP_STORED) -> Path:
    """A file of the form of torch.save's, with any pickle."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


def bomb(path: Path) -> Path:
    return saved(path, bytes(300_000_000), zipfile.ZIP_DEFLATED)


def long_pickle(path: Path) -> Path:
    return saved(path, b"\x80\x02" + b"]" * 2_000_000 + b".")


def runs(path: Path) -> Path:
    return saved(path, b"cos\nsystem\n(S'touch RAN'\ntR.")


def large_and_old(path: Path) -> Path:
    path.write_bytes(b"\x80\x02" + b"]" * 30_000_000 + b".")
    return path


def wide_directory(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40_000):
            archive.writestr(f"archive/data/{number:0100d}", b"")
    return path


def parts_over_each_other(path: Path) -> Path:
    torch.save({str(i): torch.zeros(100_000) for i in range(4)}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    first, start = parts[0].header_offset, data.rindex(b"PK\5\6")
    size = 3 * parts[0].file_size
    old, new = (struct.pack("<II", n, n) for n in (parts[0].file_size, size * 2))
    assert first < start
    path.write_bytes(data[:start].replace(old, new) + data[start:])
    return path


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "make", [bomb, long_pickle, runs, large_and_old, wide_directory, parts_over_each_other, a_pipe]
)
def test_what_would_take_time_or_memory_or_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "file.pt")
    for read in (load_tensors, load_small, SavedMatrix.find):
        with cheap(), pytest.raises(FileFormatError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "RAN").exists()


def test_what_should_be_small_is_not_read_if_it_is_large(tmp_path: Path) -> None:
    torch.save(torch.zeros(6_000_000), tmp_path / "file.pt")
    with cheap(), pytest.raises(FileFormatError, match="must hold nothing large"):
        load_small(tmp_path / "file.pt")
