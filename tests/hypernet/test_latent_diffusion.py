from pathlib import Path

import pytest
import torch

from lorasynth.errors import BundleError, ConfigError, LayoutError
from lorasynth.hypernet import LatentDiffusion, LatentDiffusionConfig

K, M = 6, 4
OPTIONS = {"width": 16, "depth": 1, "embedding": 8}


def _model(**config: object) -> LatentDiffusion:
    torch.manual_seed(0)
    model = LatentDiffusion(
        LatentDiffusionConfig(denoiser_options=OPTIONS, **config),  # type: ignore[arg-type]
        K,
        M,
    )
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.latent_normaliser.fit(torch.randn(50, K) * 3 + 1)
    return model.eval().requires_grad_(requires_grad=False)


def test_a_subjects_sample_does_not_depend_on_the_batch() -> None:
    model, c = _model(guidance=2.0), torch.randn(4, M)
    names = ["ann", "bob", "cy", "dee"]
    whole = model.sample(c, model.draw_noise(3, names))
    part = model.sample(c[[2, 0]], model.draw_noise(3, ["cy", "ann"]))
    torch.testing.assert_close(part, whole[[2, 0]], atol=1e-5, rtol=1e-5)
    assert not model.draw_noise(4, names).equal(model.draw_noise(3, names))


def test_guidance_extrapolates_the_predictions() -> None:
    """With one step the sample is the prediction itself, which guidance moves along a line."""
    model, c = _model(), torch.randn(3, M)
    noise = model.draw_noise(0, range(3))
    none, once, twice = (model.sample(c, noise, steps=1, guidance=g) for g in (0.0, 1.0, 2.0))
    torch.testing.assert_close(twice - once, once - none, atol=1e-5, rtol=1e-5)
    assert none.equal(model.sample(None, noise, steps=1))


def test_sampling_can_be_differentiated_through() -> None:
    model, c = _model(), torch.randn(3, M, requires_grad=True)
    model.sample(c, model.draw_noise(0, range(3)), steps=3).sum().backward()
    assert c.grad is not None
    assert c.grad.abs().sum() > 0


@pytest.mark.parametrize("parameterisation", ["v", "x0", "epsilon"])
def test_every_parameterisation_samples_finite_latents(parameterisation: str) -> None:
    model = _model(parameterisation=parameterisation)
    z = model.sample(torch.randn(2, M), model.draw_noise(0, range(2)))
    assert z.isfinite().all()


def test_wrong_shapes_and_steps_are_told() -> None:
    model = _model()
    noise = model.draw_noise(0, range(2))
    with pytest.raises(LayoutError, match=r"shape \(2, 4\), but got \(2, 5\)"):
        model.sample(torch.randn(2, M + 1), noise)
    with pytest.raises(LayoutError, match="6 columns, but got 7"):
        model.sample(None, torch.randn(2, K + 1))
    with pytest.raises(ConfigError, match="1 to 30 steps, but got 31"):
        model.sample(None, noise, steps=31)


def test_history_is_kept_and_damage_is_told(tmp_path: Path) -> None:
    model = _model()
    model.history = [{"step": 1.0, "loss": 0.5}]
    model.save(tmp_path / "m")
    assert LatentDiffusion.load(tmp_path / "m").history == model.history
    weights = tmp_path / "m" / "hypernet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(BundleError, match="intact"):
        LatentDiffusion.load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"latents": 3}')
    with pytest.raises(BundleError, match="must describe a hypernetwork"):
        LatentDiffusion.load(tmp_path / "m")


def test_an_unknown_denoiser_or_modulation_is_told() -> None:
    with pytest.raises(ConfigError, match="denoiser must be one of mlp, but got 'unet'"):
        LatentDiffusion(LatentDiffusionConfig(denoiser="unet"), K, M)
    options = OPTIONS | {"modulation": "film"}
    with pytest.raises(ConfigError, match="modulation must be one of ada_norm, low_rank"):
        LatentDiffusion(LatentDiffusionConfig(denoiser_options=options), K, M)
