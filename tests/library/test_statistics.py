"""Mean, spread and norms of vectors on disk, from one pass."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasynth.errors import LibraryError
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
