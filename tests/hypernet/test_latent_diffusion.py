import pytest
import torch

from lorasynth.core.errors import ConfigError
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


def test_guidance_extrapolates_the_predictions() -> None:
    """With one step the sample is the prediction itself, which guidance moves along a line."""
    model, c = _model(), torch.randn(3, M)
    noise = model.draw_noise(0, range(3))
    none, once, twice = (model.sample(c, noise, steps=1, guidance=g) for g in (0.0, 1.0, 2.0))
    torch.testing.assert_close(twice - once, once - none, atol=1e-5, rtol=1e-5)
    assert none.equal(model.sample(None, noise, steps=1))


@pytest.mark.parametrize("parameterisation", ["v", "x0", "epsilon"])
def test_every_parameterisation_samples_finite_latents(parameterisation: str) -> None:
    model = _model(parameterisation=parameterisation)
    z = model.sample(torch.randn(2, M), model.draw_noise(0, range(2)))
    assert z.isfinite().all()


def test_an_unknown_denoiser_or_modulation_is_told() -> None:
    with pytest.raises(ConfigError, match="denoiser must be one of mlp, unet, but got 'cnn'"):
        LatentDiffusion(LatentDiffusionConfig(denoiser="cnn"), K, M)
    options = OPTIONS | {"modulation": "film"}
    with pytest.raises(ConfigError, match="modulation must be one of ada_norm, low_rank"):
        LatentDiffusion(LatentDiffusionConfig(denoiser_options=options), K, M)
