"""Diffusion relative to a regression."""

import pytest
import torch
from torch import Tensor

from lorasynth.codec import PCA, VAE, PCAConfig, VAEConfig
from lorasynth.core.errors import ConfigError
from lorasynth.hypernet import LatentRegression, LatentRegressionConfig, in_latents_of
from lorasynth.hypernet.train import train

from . import toy


def regression(bias: float = 0.0) -> LatentRegression:
    """What is known of the toy problem, but for a constant error."""
    made = LatentRegression(LatentRegressionConfig(width=32, depth=1), toy.K, toy.M)
    made.condition_normaliser.fit(toy.conditions(500, seed=1), each=False)
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-2)
    c = toy.conditions(2000, seed=1)
    for _ in range(300):
        loss = (made(c) - toy.truth(c)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    made.leave.bias.data += bias
    made.mean += toy.truth(c).mean(0) + bias
    return made.eval().requires_grad_(requires_grad=False)


def error_and_spread(steps: int, anchor: LatentRegression | None) -> tuple[float, float]:
    model = train(toy.data(), toy.config(steps), anchor=anchor)
    c, draws = toy.conditions(8, seed=50), 64
    noise = model.draw_noise(0, range(8 * draws))
    z = model.sample(c.repeat_interleave(draws, 0), noise).unflatten(0, (8, draws))
    error = (z.mean(1) - toy.truth(c)).square().mean().sqrt()
    return float(error), float(z.std(1).mean())


def test_a_short_training_adds_the_spread_to_what_the_regression_knows() -> None:
    error, spread = error_and_spread(200, regression())
    assert error < 0.5 * error_and_spread(200, None)[0]
    assert 0.5 * toy.SPREAD < spread < 1.7 * toy.SPREAD


def test_what_the_regression_misses_is_learned() -> None:
    assert error_and_spread(350, regression(bias=0.5))[0] < 0.25


def test_without_a_condition_it_samples_everyone() -> None:
    model = train(toy.data(), toy.config(350), anchor=regression())
    noise = model.draw_noise(0, range(256))
    free, everyone = model.sample(None, noise), toy.data().latents
    assert (free.mean(0) - everyone.mean(0)).abs().max() < 0.5
    c = toy.conditions(1, seed=50).expand(256, -1)
    assert free.std(0).mean() > 2 * model.sample(c, noise).std(0).mean()
    torch.testing.assert_close(model.sample(c, noise, guidance=0.0), free)


def test_the_regression_stays_as_it_is() -> None:
    anchor = regression()
    model = train(toy.data(), toy.config(5), anchor=anchor)
    assert model.anchor is not None
    for name, value in anchor.state_dict().items():
        assert torch.equal(model.anchor.state_dict()[name], value)


def vectors() -> Tensor:
    return torch.randn(60, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)


def test_latents_move_between_linear_codecs() -> None:
    own, other = PCA.fit(vectors()[:30], PCAConfig(latents=toy.K)), PCA.fit(vectors())
    anchor = regression()
    moved = in_latents_of(anchor, own, other)
    c = toy.conditions(5, seed=3)
    torch.testing.assert_close(other.decode(moved(c)), own.decode(anchor(c)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        other.decode(moved.mean[None]), own.decode(anchor.mean[None]), atol=1e-3, rtol=1e-3
    )


def test_a_codec_that_is_not_linear_is_refused() -> None:
    own = PCA.fit(vectors(), PCAConfig(latents=toy.K))
    other = VAE.fit(vectors(), VAEConfig(latents=4, depth=2, hidden=8, epochs=2))
    with pytest.raises(ConfigError, match="VAE is none"):
        in_latents_of(regression(), own, other)
