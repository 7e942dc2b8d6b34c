"""Rows of a matrix that torch saved, where the file is larger than memory."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasynth.errors import FileFormatError
from lorasynth.library.torch_files import SavedMatrix

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


@given(start=st.integers(0, 11), count=st.integers(1, 12))
def test_a_reserved_matrix_is_written_and_read_in_place(
    tmp_path_factory: pytest.TempPathFactory, start: int, count: int
) -> None:
    path = tmp_path_factory.mktemp("reserved") / "matrix.pt"
    reserved = SavedMatrix.reserve(path, 12, 5)
    assert not reserved.rows(0, 12).any()
    matrix = torch.arange(60.0).reshape(12, 5)
    with path.open("rb+") as file:
        file.seek(reserved.start)
        matrix.numpy().tofile(file)
    assert torch.load(path, weights_only=True).equal(matrix)
    stop = min(start + count, 12)
    assert SavedMatrix.find(path).rows(start, stop).equal(matrix[start:stop])


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
