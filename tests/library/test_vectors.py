"""Blocks of vectors on disk, in every type that they are stored in."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from library_reader import read_while_it_grows

from lorasynth.core.errors import LibraryError
from lorasynth.library import Library
from lorasynth.library.vectors import VectorFile, write_vectors

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_block_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, data: st.DataObject
) -> None:
    count, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    vectors = torch.randn(count, width).to(getattr(torch, dtype))
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    write_vectors(path, vectors)
    file = VectorFile(path)
    assert (len(file), file.width, file.dtype) == (count, width, vectors.dtype)
    assert torch.equal(file.all_vectors(), vectors.float())
    row, column = data.draw(st.integers(0, count)), data.draw(st.integers(0, width))
    out = torch.full(
        (data.draw(st.integers(0, count - row)), data.draw(st.integers(0, width - column))), -7.0
    )
    expected = vectors.float()[row : row + len(out), column : column + out.shape[1]]
    file.read_block(row, column, out)
    assert torch.equal(out, expected)


def test_blocks_larger_than_one_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lorasynth.library.vectors._READ_BYTES", 64)
    vectors = torch.randn(50, 11)
    write_vectors(tmp_path / "v.npy", vectors)
    out = torch.empty(41, 11)
    VectorFile(tmp_path / "v.npy").read_block(7, 0, out)
    assert torch.equal(out, vectors[7:48])


def test_blocks_beyond_the_vectors_are_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.npy", torch.zeros(3, 4))
    file = VectorFile(tmp_path / "v.npy")
    for row, column in ((-1, 0), (2, 0), (0, 3)):
        with pytest.raises(LibraryError, match="a block must lie within the 3 x 4 vectors"):
            file.read_block(row, column, torch.empty(2, 2))


def test_what_are_no_vectors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    cases = {
        "shape": np.zeros(3, np.float32),
        "type <i8": np.zeros((3, 4), np.int64),
        "C-ordered": np.asfortranarray(np.zeros((3, 4), np.float32)),
    }
    for message, array in cases.items():
        np.save(path, array)
        with pytest.raises(LibraryError, match=message):
            VectorFile(path)
    write_vectors(path, torch.zeros(3, 4))
    whole = VectorFile(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(LibraryError, match="bytes instead of"):
        VectorFile(path)
    with pytest.raises(LibraryError, match="shorter than its header says"):
        whole.all_vectors()
    with pytest.raises(LibraryError, match=r"must be an \.npy file of vectors"):
        VectorFile(tmp_path / "none.npy")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_library_in_that_type(fill, tmp_path: Path, dtype: str) -> None:
    full, other = fill(tmp_path / "full", 2, 3, 7), fill(tmp_path / "other", 2, 3, 7, dtype=dtype)
    expected = full.all_vectors().to(getattr(torch, dtype)).float()
    torch.testing.assert_close(other.all_vectors(), expected, rtol=1e-2, atol=1e-6)
    assert Library.open(tmp_path / "other").info.dtype == dtype
    assert other.check().damages == ()
    size = (tmp_path / "other/shards/000002/vectors.npy").stat().st_size
    assert size - 128 == 4 * other.width * getattr(torch, dtype).itemsize


def test_blocks_of_a_library_and_of_a_view(fill, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", 2, 3, 7)
    every = library.all_vectors()
    for row, column, count, width in ((0, 0, 7, library.width), (1, 3, 5, 4), (6, 0, 1, 9)):
        out = torch.empty(count, width)
        library.read_block(row, column, out)
        assert torch.equal(out, every[row : row + count, column : column + width])
    view = library.select([0, 1, 2, 6, 4, 5, 3])
    out = torch.empty(5, 4)
    view.read_block(1, 2, out)
    assert torch.equal(out, every[[1, 2, 6, 4, 5], 2:6])
    for source, end in ((library, 6), (view, 6)):
        with pytest.raises(LibraryError, match=f"rows must be from 0 to {end}, but got 5 to 8"):
            source.read_block(5, 0, torch.empty(3, 4))
    assert library.fingerprint == Library.open(tmp_path / "lib").fingerprint
    assert len({library.fingerprint, view.fingerprint, library.select([1]).fingerprint}) == 3


@pytest.mark.long
def test_two_processes_read_while_one_appends(fill, tmp_path: Path) -> None:
    library, here = fill(tmp_path / "lib", 2), Path(__file__).parent
    command = [sys.executable, here / "killed_writer.py", library.path]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as writer:
        try:
            other = subprocess.Popen(
                [sys.executable, here / "library_reader.py", library.path], stdout=subprocess.PIPE
            )
            read_while_it_grows(library.path)
            assert other.communicate(timeout=60)[0] == b"intact\n"
        finally:
            writer.kill()


def test_a_shard_of_another_width_is_named(fill, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", 2, 4)
    write_vectors(tmp_path / "lib/shards/000001/vectors.npy", torch.zeros(2, library.width + 1))
    damaged = Library.open(tmp_path / "lib")
    out = torch.empty(4, library.width)
    for read in (damaged.all_vectors, lambda: damaged.read_block(0, 0, out)):
        with pytest.raises(LibraryError, match=r"shard 000001: .*\(it has the shape \(2, \d+\)"):
            read()
