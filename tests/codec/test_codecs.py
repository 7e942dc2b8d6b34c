from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lorasynth.codec import PCA, VAE, PCAConfig, Scaled, ScaledConfig, VAEConfig
from lorasynth.codec.vae import _hidden_widths
from lorasynth.core.config import from_dict
from lorasynth.core.errors import ConfigError


def _correlated(n: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spectrum = 2.0 ** -torch.arange(width)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return (torch.randn(n, width, generator=generator) * spectrum) @ rotation + 1


def test_more_components_lose_less_and_the_report_says_how_much() -> None:
    x = _correlated(200, 8)
    lost = []
    for latents in range(1, 9):
        codec = PCA.fit(x, PCAConfig(latents=latents))
        error = (codec.decode(codec.encode(x)) - x).square().sum()
        lost.append(float(error / (x - x.mean(0)).square().sum()))
        explained = codec.report["explained_variance"]
        assert len(explained) == latents
        assert explained[-1] == pytest.approx(1 - lost[-1], abs=1e-4)
    assert all(b < a for a, b in pairwise(lost))
    assert lost[-1] < 1e-9


def test_latents_keep_the_spectrum_or_are_whitened() -> None:
    x = _correlated(200, 8)
    plain = PCA.fit(x, PCAConfig(latents=4)).encode(x)
    std = plain.std(0, correction=0)
    assert (std.diff() < 0).all()
    assert float(std.square().mean()) == pytest.approx(1, abs=1e-4)
    white = PCA.fit(x, PCAConfig(latents=4, whiten=True)).encode(x)
    covariance = white.T @ white / len(x)
    torch.testing.assert_close(covariance, torch.eye(4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("latents", [0, 5, 100])
def test_more_components_than_there_are_is_an_error(latents: int) -> None:
    with pytest.raises(ConfigError, match=f"from 1 to 4 components, but got latents={latents}"):
        PCA.fit(_correlated(5, 8), PCAConfig(latents=latents))
    assert PCA.fit(_correlated(5, 8)).latents == 4


def test_scaling_per_parameter_gives_each_a_deviation_of_one_and_floors_constants() -> None:
    x = _correlated(50, 6)
    x[:, 2] = 0.125
    z = Scaled.fit(x).encode(x)
    expected = torch.ones(6)
    expected[2] = 0
    torch.testing.assert_close(z.std(0, correction=0), expected, atol=1e-3, rtol=0)
    shifted = x.clone()
    shifted[:, 2] += 1e-9
    assert Scaled.fit(x).encode(shifted).abs().max() < 10


def test_scaling_globally_keeps_proportions() -> None:
    x = _correlated(50, 6)
    z = Scaled.fit(x, ScaledConfig(scale="global")).encode(x)
    ratio = z.std(0) / x.std(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(6))


def test_a_linear_vae_does_not_beat_pca_where_both_were_fitted() -> None:
    """In squared error PCA is the best linear map (Eckart & Young 1936), whatever a VAE claims."""
    x = _correlated(150, 12)
    errors = {}
    for latents in (2, 4):
        pca = PCA.fit(x, PCAConfig(latents=latents))
        vae = VAE.fit(
            x,
            VAEConfig(latents=latents, beta=1e-4, epochs=250, batch=16, lr=0.24, weight_decay=0.0),
        )
        for name, codec in (("pca", pca), ("vae", vae)):
            errors[name] = float((codec.decode(codec.encode(x)) - x).square().sum())
        assert errors["pca"] <= errors["vae"]
        # Near enough that the comparison means something: it did learn.
        assert errors["vae"] < 1.3 * errors["pca"]


def test_a_larger_beta_rebuilds_worse_and_diverges_less() -> None:
    x = _correlated(100, 10)
    last = [
        VAE.fit(x, VAEConfig(latents=4, beta=beta, epochs=80, lr=0.1)).report["epochs"][-1]
        for beta in (0.01, 10.0)
    ]
    assert last[0]["reconstruction"] < last[1]["reconstruction"]
    assert last[0]["divergence"] > last[1]["divergence"]


def test_fitting_a_vae_repeats_and_leaves_the_global_stream_alone() -> None:
    x = _correlated(30, 6)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = VAE.fit(x, VAEConfig(latents=2, epochs=3))
    assert torch.rand(1).equal(expected)
    assert first.encode(x).equal(VAE.fit(x, VAEConfig(latents=2, epochs=3)).encode(x))
    assert not first.encode(x).equal(VAE.fit(x, VAEConfig(latents=2, epochs=3, seed=1)).encode(x))


def test_stops_early_and_keeps_the_best_weights() -> None:
    """Pure noise cannot be predicted, so the held-out loss soon rises."""
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    config = VAEConfig(latents=20, beta=1e-3, lr=0.3, epochs=300, patience=10, validation=0.3)
    codec = VAE.fit(x, config)
    losses = [epoch["held_out_loss"] for epoch in codec.report["epochs"]]
    assert len(losses) < 300
    assert losses.index(min(losses)) == len(losses) - 1 - 10
    assert float(codec.encode(x).abs().max()) > 0


def test_divergence_is_told() -> None:
    with pytest.raises(ConfigError, match="diverged before step"):
        VAE.fit(_correlated(30, 6), VAEConfig(latents=2, epochs=50, lr=1e30))


def test_widths_fall_from_hidden_to_latents() -> None:
    assert _hidden_widths(VAEConfig(depth=1), 512) == []
    assert _hidden_widths(VAEConfig(depth=4, hidden=1000), 8) == [1000, 200, 40]


@pytest.mark.parametrize(
    "options", [{"latents": 0}, {"depth": 0}, {"validation": 1.0}, {"lr": -1.0}, {"beta": -1.0}]
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="VAEConfig"):
        from_dict(VAEConfig, options)
