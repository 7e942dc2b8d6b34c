"""VAE: the same wherever its vectors are, within memory, whatever kills it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kills import kill_after_checkpoint
from lorasynth.codec import VAE, Budget, VAEConfig, vae
from lorasynth.codec.vae import _choose, _Epochs
from lorasynth.core.errors import BundleError, ConfigError, LibraryError
from lorasynth.engine.trainer import Trainer
from lorasynth.library.vectors import write_vectors
from synthetic_vectors import SyntheticConfig, SyntheticVectors

from .test_pca import GB, HERE, on_disk

CONFIG = VAEConfig(latents=6, epochs=6, batch=16, lr=0.2, patience=3)
SPAN = VAEConfig(latents=8, epochs=40, beta=0.02)
BUDGET = Budget(memory=16 * GB, checkpoint_seconds=0.0)


def example(rows: int = 110, width: int = 90) -> Tensor:
    """Vectors far from zero, whose parameters differ in standard deviation."""
    vectors = SyntheticVectors(SyntheticConfig(rows=rows, width=width, spread=1.0))
    return vectors.rows(0, rows) * torch.linspace(0.5, 2, width) + 30


def few(rows: int = 60) -> Tensor:
    """Fewer vectors than they have parameters."""
    return SyntheticVectors(SyntheticConfig(rows=120, width=400)).rows(0, rows)


def goes(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(vae, "_choose", lambda *_sizes: way)


def same(left: VAE, right: VAE) -> bool:
    other = right.state_dict()
    return all(value.equal(other[name]) for name, value in left.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"depth": 2, "hidden": 12, "scale": "parameter"}])
def test_read_while_it_trains_it_is_the_same_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    source, config = on_disk(example(), tmp_path), replace(CONFIG, **options)
    made = {}
    for way in ("source", "memory"):
        goes(monkeypatch, way)
        made[way] = VAE.fit(source, config, BUDGET)
        assert made[way].report.pop("computation") == {"way": way, "vectors": 110}
    assert same(made["source"], made["memory"])
    assert made["source"].report == made["memory"].report


@pytest.mark.parametrize("way", ["span", "memory", "source"])
def test_interrupted_after_any_checkpoint_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Stop at every thirtieth checkpoint; the best epoch is not the last."""
    noise = torch.randn(60, 140, generator=torch.Generator().manual_seed(0))
    source = on_disk(noise, tmp_path)
    config = VAEConfig(
        latents=20, beta=1e-3, lr=1.0, batch=8, epochs=40, patience=3, validation=0.3
    )
    goes(monkeypatch, way)
    expected = VAE.fit(source, config, BUDGET)
    losses = [epoch["held_out_loss"] for epoch in expected.report["epochs"]]
    assert losses.index(min(losses)) == len(losses) - 4
    save, chance, stops = Trainer._save, np.random.default_rng(0), 0

    def stopped(self: Trainer, step: int) -> None:
        save(self, step)
        if chance.random() < 0.03:
            raise KeyboardInterrupt

    for _ in range(400):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_save", stopped)
            try:
                found = VAE.fit(source, config, replace(BUDGET, run=tmp_path / "run"))
                break
            except KeyboardInterrupt:
                stops += 1
    assert stops > 0
    assert same(found, expected)
    assert found.report == expected.report


@pytest.mark.long
def test_killed_at_random_moments_it_ends_with_the_same_bits_within_memory(tmp_path: Path) -> None:
    """In processes of their own: in memory it would take 0.8 GB beside Python and torch."""
    path, memory = tmp_path / "vectors.npy", int(0.95 * GB)
    write_vectors(path, torch.randn(200, 24_576).repeat(5, 1))

    def program(run: str, out: str) -> list[str]:
        words = [HERE / "fitted.py", path, tmp_path / run, memory, "vae", tmp_path / out]
        return [sys.executable, *map(str, words)]

    killed = program("run", "killed")
    for _ in range(2):
        delay = np.random.default_rng().uniform(0, 0.5)
        assert kill_after_checkpoint(killed, tmp_path / "run", delay)
    for command in (killed, program("other run", "undisturbed")):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        way, peak = done.stdout.split()
        assert way == "source"
        assert int(peak) < memory
    for name in ("codec.safetensors", "config.json"):
        files = [tmp_path / folder / name for folder in ("killed", "undisturbed")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("n", "memory", "way"),
    [(1_000, 5.0, "span"), (60_000, 120.0, "memory"), (64_974, 6.5, "source")],
)
def test_the_way_follows_from_sizes_and_memory(n: int, memory: float, way: str) -> None:
    weights = 4 * 3 * 512 * 99_648
    assert _choose(n, 99_648, 256, weights, int(memory * GB) - (512 << 20)) == way


def test_what_does_not_fit_is_refused_with_what_it_would_take() -> None:
    weights = 4 * 3 * 512 * 99_648
    with pytest.raises(ConfigError, match=r"takes at least 5\.\d\d GB .* but 2\.00 GB are left"):
        _choose(64_974, 99_648, 256, weights, 2 * GB)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    source, budget = on_disk(example(), tmp_path), replace(BUDGET, run=tmp_path / "run")
    VAE.fit(source, CONFIG, budget)
    with pytest.raises(ConfigError, match="holds the checkpoint of another computation"):
        VAE.fit(source, VAEConfig(latents=5), budget)
    (tmp_path / "run/training.safetensors").write_bytes(b"short")
    with pytest.raises(BundleError, match="must be an intact checkpoint"):
        VAE.fit(source, CONFIG, budget)


@pytest.mark.parametrize("way", ["memory", "source"])
def test_bad_vectors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    goes(monkeypatch, way)
    x = example()
    x[77, 11] = float("nan")
    with pytest.raises(LibraryError, match="adapter 77 of 110 has NaN or infinity"):
        VAE.fit(on_disk(x, tmp_path), CONFIG, BUDGET)


# Few long vectors are learned in their span


@pytest.mark.parametrize("depth", [1, 2])
def test_the_loss_in_the_span_is_that_of_the_whole_vectors(depth: int) -> None:
    config = replace(SPAN, depth=depth, hidden=16)
    codec = VAE.fit(few(), config)
    assert codec.report["computation"]["way"] == "span"
    held_out = _Epochs(60, config).held_out
    with torch.no_grad():
        x = codec.scaled.encode(few()[held_out])
        terms = codec.terms(x, torch.zeros(len(x), config.latents))
    best = min(codec.report["epochs"], key=lambda epoch: epoch["held_out_loss"])
    loss = float(terms.reconstruction + config.beta * terms.divergence)
    assert loss == pytest.approx(best["held_out_loss"], rel=1e-4)
    assert float(terms.reconstruction) == pytest.approx(best["held_out_reconstruction"], rel=1e-4)
    assert float(terms.divergence) == pytest.approx(best["held_out_divergence"], rel=1e-4)


def test_it_is_no_worse_than_training_in_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """On vectors that it was not fitted to, since nothing outside of the span disturbs it."""
    known, unseen = few(), few(120)[60:]
    inside = VAE.fit(known, SPAN)
    away = torch.randn(1, 400, generator=torch.Generator().manual_seed(1))
    basis = torch.linalg.svd(known - known.mean(0), full_matrices=False).Vh[:59]
    away -= away @ basis.T @ basis
    torch.testing.assert_close(inside.encode(known + away), inside.encode(known), atol=1e-3, rtol=0)
    goes(monkeypatch, "memory")
    outside = VAE.fit(known, SPAN)
    errors = [c.decode(c.encode(unseen)) - unseen for c in (inside, outside)]
    assert errors[0].square().sum() < errors[1].square().sum()


def test_vectors_that_are_all_alike_have_no_span_and_are_learned_as_they_are() -> None:
    codec = VAE.fit(torch.ones(4, 20), VAEConfig(latents=2, epochs=60))
    rebuilt = codec.decode(codec.encode(torch.ones(1, 20)))
    torch.testing.assert_close(rebuilt, torch.ones(1, 20), atol=0.05, rtol=0)
