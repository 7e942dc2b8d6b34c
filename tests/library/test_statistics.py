"""Mean, spread and norms of vectors on disk, from one pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from lorasynth.core.errors import LibraryError
from lorasynth.library import streaming_statistics
from lorasynth.library.statistics import Sums
from lorasynth.library.vectors import VectorFile, write_vectors


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 20), block=st.integers(1, 7), offset=st.floats(-1e4, 1e4))
def test_one_pass_is_exact_for_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, rows: int, block: int, offset: float
) -> None:
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    write_vectors(
        path, torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows)) + offset
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorasynth.library.statistics._BLOCK_BYTES", block * 20)
        patch.setattr("lorasynth.library.statistics._COLUMNS", 2)
        patch.setattr("lorasynth.library.statistics._VECTORS", 2)
        found = streaming_statistics(VectorFile(path))
    vectors = VectorFile(path).all_vectors().double()
    torch.testing.assert_close(found.moments.mean, vectors.mean(0), rtol=1e-7, atol=1e-6)
    std = found.moments.variance.sqrt()
    torch.testing.assert_close(std, vectors.std(0, correction=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.norms, vectors.norm(dim=1))


_MANY = """
import resource, sys
from pathlib import Path
from lorasynth.library import streaming_statistics
from lorasynth.library.vectors import VectorFile

resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, resource.RLIM_INFINITY))
print(streaming_statistics(VectorFile(Path(sys.argv[1]))).norms.sum().item())
"""


def test_memory_does_not_grow_with_the_number_of_vectors(tmp_path: Path) -> None:
    """A gigabyte is enough, though the vectors would take 1.6 of them in float64.

    Here the heap keeps every block that is freed, as it does once a program has freed a larger one;
    a small tensor that is kept between two blocks would then take a block's place.
    """
    with (tmp_path / "v.npy").open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (2000, 99_648)}
        npy.write_array_header_2_0(file, header)
        file.truncate(file.tell() + 2 * 2000 * 99_648)  # a hole: zeros that take no disk
    run = [sys.executable, "-c", _MANY, str(tmp_path / "v.npy")]
    heap = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
    done = subprocess.run(run, check=False, capture_output=True, text=True, env=heap)
    assert done.stdout == "0.0\n", done.stderr


def test_sums_of_a_block_are_in_float64(tmp_path: Path) -> None:
    x = torch.tensor([0.0, 2.0**24, 1.0, 1.0, 1.0, -(2.0**24)])[:, None]
    write_vectors(tmp_path / "v.npy", x)
    sums = Sums(VectorFile(tmp_path / "v.npy"), 1, torch.device("cpu"))
    sums.add(0, x)
    assert sums.tensors["sum"].tolist() == [3.0]
    assert sums.tensors["squares"].tolist() == [2.0**49 + 3]


def test_nothing_is_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.npy", torch.empty(0, 3))
    with pytest.raises(LibraryError, match="at least one vector"):
        streaming_statistics(VectorFile(tmp_path / "v.npy"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_what_is_not_finite_is_named(tmp_path: Path, monkeypatch, bad: float) -> None:
    monkeypatch.setattr("lorasynth.library.statistics._BLOCK_BYTES", 40)
    x = torch.ones(9, 3)
    x[7, 1] = bad
    write_vectors(tmp_path / "v.npy", x)
    with pytest.raises(LibraryError, match="adapter 7 of 9"):
        streaming_statistics(VectorFile(tmp_path / "v.npy"))
