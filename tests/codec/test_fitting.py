"""Codecs of libraries of any size, into a folder."""

from pathlib import Path

import pytest
import torch

from lorasynth.codec import Scaled, ScaledConfig, load_codec
from lorasynth.codec.fitting import fit_into
from lorasynth.library.vectors import VectorFile, write_vectors


def test_scaled_is_fitted_in_blocks(tmp_path: Path, monkeypatch) -> None:
    x = torch.randn(50, 8) * torch.linspace(0.5, 2, 8) + 3
    write_vectors(tmp_path / "v.npy", x)
    monkeypatch.setattr(VectorFile, "all_vectors", lambda _self: pytest.fail("all in memory"))
    source, config = VectorFile(tmp_path / "v.npy"), ScaledConfig()
    fit_into(tmp_path / "codec", "scaled", source, config, memory=1, run=tmp_path / "run")
    found, expected = load_codec(tmp_path / "codec"), Scaled.fit(x, config)
    torch.testing.assert_close(found.encode(x), expected.encode(x), atol=1e-5, rtol=1e-5)
