import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasynth.library.vectors import VectorFile
from synthetic_vectors import SyntheticConfig, SyntheticVectors


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(2, 40), width=st.integers(1, 40), seed=st.integers(0, 9))
def test_the_covariance_is_what_it_says(rows: int, width: int, seed: int) -> None:
    vectors = SyntheticVectors(SyntheticConfig(rows=rows, width=width, seed=seed))
    x = vectors.rows(0, rows).double()
    components = vectors.components(0, vectors.rank)
    assert len(components) == min(rows - 1, width)
    identity = torch.eye(vectors.rank, dtype=torch.float64)
    torch.testing.assert_close(components @ components.T, identity)
    torch.testing.assert_close(x.mean(0), vectors.mean, rtol=0, atol=1e-6)
    centred = x - x.mean(0)
    found = centred.T @ centred / rows
    expected = components.T @ vectors.variances.diag() @ components
    largest = float(vectors.variances[0])
    torch.testing.assert_close(found / largest, expected / largest, rtol=0, atol=1e-5)
    assert float(vectors.variances.sum()) == pytest.approx(width * vectors.config.spread**2)


def test_rows_do_not_depend_on_the_block() -> None:
    vectors = SyntheticVectors(SyntheticConfig(rows=30, width=50))
    whole = vectors.rows(0, 30)
    assert torch.equal(torch.cat([vectors.rows(0, 7), vectors.rows(7, 30)]), whole)


def test_captured_variance() -> None:
    vectors = SyntheticVectors(SyntheticConfig(rows=30, width=50))
    first = vectors.components(0, 5)
    assert vectors.captured(first) == pytest.approx(float(vectors.variances[:5].sum()))
    mixed = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q @ first
    assert vectors.captured(mixed) == pytest.approx(float(vectors.variances[:5].sum()))
    assert vectors.captured(vectors.components(5, 6)) == pytest.approx(float(vectors.variances[5]))


def test_written_in_blocks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("synthetic_vectors._BLOCK_BYTES", 8 * 20 * 3)
    vectors = SyntheticVectors(SyntheticConfig(rows=10, width=20))
    vectors.write(tmp_path / "v.npy")
    assert torch.equal(VectorFile(tmp_path / "v.npy").all_vectors(), vectors.rows(0, 10))
    assert np.load(tmp_path / "v.npy").shape == (10, 20)
    vectors.write(tmp_path / "half.npy", "float16")
    half = VectorFile(tmp_path / "half.npy")
    assert half.dtype == torch.float16
    assert torch.equal(half.all_vectors(), vectors.rows(0, 10).half().float())
