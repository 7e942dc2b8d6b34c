"""Every hypernetwork keeps the contract; one row each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lorasynth.core.errors import BundleError, ConfigError, LayoutError
from lorasynth.hypernet import (
    HYPERNETWORKS,
    Hypernetwork,
    LatentDiffusion,
    LatentDiffusionConfig,
    LatentRegression,
    LatentRegressionConfig,
    load_hypernet,
)

K, M = 6, 4


def diffusion(anchor: LatentRegressionConfig | None = None) -> Hypernetwork:
    options = {"width": 16, "depth": 1, "embedding": 8}
    model = LatentDiffusion(LatentDiffusionConfig(denoiser_options=options, anchor=anchor), K, M)
    model.latent_normaliser.fit(torch.randn(50, K) * 3 + 1)
    return model


def regression() -> Hypernetwork:
    model = LatentRegression(LatentRegressionConfig(width=16, depth=1), K, M)
    model.condition_normaliser.fit(torch.randn(50, M) * 3 + 1)
    model.mean += torch.arange(K)
    return model


ROWS: dict[str, Callable[[], Hypernetwork]] = {
    "diffusion": diffusion,
    "diffusion around a regression": lambda: diffusion(LatentRegressionConfig(width=8, depth=1)),
    "regression": regression,
}


@pytest.fixture(params=ROWS)
def model(request: pytest.FixtureRequest) -> Hypernetwork:
    """Untrained, but with weights that make everything matter."""
    torch.manual_seed(0)
    made: Hypernetwork = ROWS[request.param]()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(requires_grad=False)


def test_every_plug_in_has_a_row() -> None:
    assert {HYPERNETWORKS.name_of(type(make())) for make in ROWS.values()} == set(
        HYPERNETWORKS.names()
    )


def test_a_subjects_latent_does_not_depend_on_the_batch(model: Hypernetwork) -> None:
    c, names = torch.randn(4, M), ["ann", "bob", "cy", "dee"]
    whole = model.sample(c, model.draw_noise(3, names), guidance=2.0)
    part = model.sample(c[[2, 0]], model.draw_noise(3, ["cy", "ann"]), guidance=2.0)
    torch.testing.assert_close(part, whole[[2, 0]], atol=1e-5, rtol=1e-5)
    assert not whole[0].allclose(whole[1])
    assert not model.draw_noise(4, names).equal(model.draw_noise(3, names))


def test_guidance_zero_ignores_the_condition(model: Hypernetwork) -> None:
    c, noise = torch.randn(3, M), model.draw_noise(0, range(3))
    none = model.sample(None, noise)
    assert none.equal(model.sample(c, noise, guidance=0.0))
    assert model.sample(c, noise, guidance=1.0).equal(model.sample(c, noise))
    assert not none.allclose(model.sample(c, noise))


def test_sampling_can_be_differentiated_through(model: Hypernetwork) -> None:
    c = torch.randn(3, M, requires_grad=True)
    model.sample(c, model.draw_noise(0, range(3))).sum().backward()
    assert c.grad is not None
    assert c.grad.abs().sum() > 0


def test_wrong_shapes_are_told(model: Hypernetwork) -> None:
    noise = model.draw_noise(0, range(2))
    with pytest.raises(LayoutError, match=r"shape \(2, 4\), but got \(2, 5\)"):
        model.sample(torch.randn(2, M + 1), noise)
    with pytest.raises(LayoutError, match="6 columns, but got 7"):
        model.sample(None, torch.randn(2, K + 1))


def test_steps_that_it_cannot_take_are_told(model: Hypernetwork) -> None:
    with pytest.raises(ConfigError, match=r"steps, but got (steps=)?31"):
        model.sample(None, model.draw_noise(0, [0]), steps=31)


def test_it_is_read_as_it_was_saved(model: Hypernetwork, tmp_path: Path) -> None:
    c, noise = torch.randn(3, M), model.draw_noise(0, range(3))
    expected = model.sample(c, noise)
    model.history = [{"step": 1.0, "loss": 0.5}]
    model.save(tmp_path / "whole")
    again = load_hypernet(tmp_path / "whole")
    assert type(again) is type(model)
    assert again.history == model.history
    assert again.sample(c, noise).equal(expected)
    model.save(tmp_path / "half", half=True)
    half = load_hypernet(tmp_path / "half").sample(c, noise)
    torch.testing.assert_close(half, expected, atol=0.05, rtol=0)


def test_damage_is_told(model: Hypernetwork, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    weights = tmp_path / "m" / "hypernet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(BundleError, match="intact"):
        load_hypernet(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"latents": 3}')
    with pytest.raises(BundleError, match="must describe a hypernetwork"):
        load_hypernet(tmp_path / "m")
