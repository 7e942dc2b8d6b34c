"""Training a VAE on vectors on disk: as in memory, within memory, whatever kills it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kills import kill_after_checkpoint
from lorasynth.codec import VAE, VAEConfig
from lorasynth.codec.streamed_vae import StreamingConfig, choose_way, fit_streamed
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.errors import BundleError, ConfigError, LibraryError
from lorasynth.library.vectors import VectorFile, write_vectors
from synthetic_vectors import SyntheticConfig, SyntheticVectors

GB = 10**9
HERE = Path(__file__).parent
CONFIG = VAEConfig(latents=6, epochs=6, batch=16, lr=0.2, patience=3)


def example(rows: int = 110, width: int = 90) -> Tensor:
    """Vectors far from zero, whose numbers differ in spread."""
    vectors = SyntheticVectors(SyntheticConfig(rows=rows, width=width, spread=1.0))
    return vectors.rows(0, rows) * torch.linspace(0.5, 2, width) + 30


def on_disk(vectors: Tensor, folder: Path) -> VectorFile:
    write_vectors(folder / "vectors.npy", vectors)
    return VectorFile(folder / "vectors.npy")


def how(seconds: float = 0.0) -> StreamingConfig:
    return StreamingConfig(memory=4 * GB, checkpoint_seconds=seconds)


def chooses(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("lorasynth.codec.streamed_vae.choose_way", lambda *_a, **_k: way)


def same(left: VAE, right: VAE) -> bool:
    other = right.state_dict()
    return all(value.equal(other[name]) for name, value in left.state_dict().items())


def test_what_fits_is_trained_in_memory_with_the_same_bits(tmp_path: Path) -> None:
    x = example()
    found = fit_streamed(on_disk(x, tmp_path), CONFIG, how(), run=tmp_path / "run")
    expected = VAE.fit(x, CONFIG)
    assert same(found, expected)
    assert found.report["epochs"] == expected.report["epochs"]
    assert found.report["computation"] == {"way": "memory", "vectors": 110}


@pytest.mark.parametrize("options", [{}, {"depth": 2, "hidden": 12, "scale": "parameter"}])
def test_streamed_it_learns_the_same(tmp_path: Path, monkeypatch, options: dict) -> None:
    x, config = example(), VAEConfig(latents=6, epochs=6, batch=16, lr=0.2, **options)
    chooses(monkeypatch, "streamed")
    found = fit_streamed(on_disk(x, tmp_path), config, how())
    expected = VAE.fit(x, config)
    torch.testing.assert_close(found.encode(x), expected.encode(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.decode(found.encode(x)), expected.decode(expected.encode(x)))
    for one, other in zip(found.report["epochs"], expected.report["epochs"], strict=True):
        assert one["held_out_loss"] == pytest.approx(other["held_out_loss"], rel=1e-5)
        # described by as many as are held out, not by all
        assert one["loss"] == pytest.approx(other["loss"], rel=0.2)


@pytest.mark.parametrize("way", ["memory", "streamed"])
def test_interrupted_after_any_checkpoint_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch, way: str
) -> None:
    """Stop at every twentieth checkpoint; the best epoch is not the last."""
    source = on_disk(torch.randn(60, 40, generator=torch.Generator().manual_seed(0)), tmp_path)
    config = VAEConfig(
        latents=20, beta=1e-3, lr=1.0, batch=8, epochs=40, patience=3, validation=0.3
    )
    chooses(monkeypatch, way)
    expected = fit_streamed(source, config, how())
    losses = [epoch["held_out_loss"] for epoch in expected.report["epochs"]]
    assert losses.index(min(losses)) == len(losses) - 4
    save, chance, stops = Checkpoint.save, np.random.default_rng(0), 0

    def stopped(self: Checkpoint, *args: object, **more: object) -> None:
        save(self, *args, **more)
        if chance.random() < 0.05:
            raise KeyboardInterrupt

    for _ in range(400):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", stopped)
            try:
                found = fit_streamed(source, config, how(), run=tmp_path / "run")
                break
            except KeyboardInterrupt:
                stops += 1
    assert stops > 2
    assert same(found, expected)
    assert found.report == expected.report


@pytest.mark.long
def test_killed_at_random_moments_it_ends_with_the_same_bits_within_memory(tmp_path: Path) -> None:
    """In processes of their own: in memory it would take 0.8 GB beside Python and torch."""
    path, memory = tmp_path / "vectors.npy", int(0.85 * GB)
    write_vectors(path, torch.randn(200, 24_576).repeat(5, 1))

    def program(run: str, out: str) -> list[object]:
        return [sys.executable, HERE / "trained.py", path, tmp_path / run, memory, tmp_path / out]

    killed = [str(part) for part in program("run", "killed")]
    for _ in range(2):
        delay = np.random.default_rng().uniform(0, 0.5)
        assert kill_after_checkpoint(killed, tmp_path / "run", delay)
    undisturbed = [str(part) for part in program("other run", "undisturbed")]
    for command in (killed, undisturbed):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        way, peak = done.stdout.split()
        assert way == "streamed"
        assert int(peak) < memory
    for name in ("codec.safetensors", "config.json"):
        files = [tmp_path / folder / name for folder in ("killed", "undisturbed")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("n", "memory", "way"),
    [(1_000, 8.0, "memory"), (8_192, 8.0, "streamed"), (64_974, 4.5, "streamed")],
)
def test_the_way_follows_from_sizes_and_memory(n: int, memory: float, way: str) -> None:
    weights = 4 * 3 * 512 * 99_648
    assert choose_way(n, 99_648, 256, weights, int(memory * GB) - (512 << 20), spill=True) == way


def test_what_does_not_fit_is_refused_with_what_it_would_take() -> None:
    weights = 4 * 3 * 512 * 99_648
    with pytest.raises(ConfigError, match=r"takes at least 3\.\d\d GB .* but 2\.00 GB are left"):
        choose_way(64_974, 99_648, 256, weights, 2 * GB, spill=True)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch
) -> None:
    source, run = on_disk(example(), tmp_path), tmp_path / "run"
    chooses(monkeypatch, "streamed")
    fit_streamed(source, CONFIG, how(), run=run)
    with pytest.raises(ConfigError, match="holds the checkpoint of another computation"):
        fit_streamed(source, VAEConfig(latents=5), how(), run=run)
    (run / "training.safetensors").write_bytes(b"short")
    with pytest.raises(BundleError, match="must be an intact checkpoint"):
        fit_streamed(source, CONFIG, how(), run=run)


def test_bad_vectors_are_refused(tmp_path: Path, monkeypatch) -> None:
    chooses(monkeypatch, "streamed")
    with pytest.raises(LibraryError, match="two or more adapters, but got 1"):
        fit_streamed(on_disk(torch.ones(1, 5), tmp_path), CONFIG, how())
    x = example()
    x[77, 11] = float("nan")
    with pytest.raises(LibraryError, match="adapter 77 of 110 has NaN or infinity"):
        fit_streamed(on_disk(x, tmp_path), CONFIG, how())
