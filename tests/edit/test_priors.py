"""Every prior: what is drawn depends on its name alone, and is like the library as it says."""

import pytest
import torch

from lorasynth.edit import PRIORS

NAMES = [f"{i}" for i in range(400)]


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 + torch.randn(50, 4, generator=generator) * torch.tensor([2.0, 1.0, 0.5, 0.1])


@pytest.mark.parametrize("prior", PRIORS.names())
def test_one_latent_depends_on_its_name_and_the_seed_alone(
    latents: torch.Tensor, prior: str
) -> None:
    draw = PRIORS.get(prior)
    drawn = draw(latents, NAMES, 0)
    assert drawn.shape == (400, 4)
    torch.testing.assert_close(draw(latents, NAMES[7:8], 0), drawn[7:8])
    assert not torch.equal(draw(latents, NAMES, 1), drawn)
    assert drawn.std(dim=0).min() > 0


@pytest.mark.parametrize(
    ("prior", "centre", "spread"),
    [("gaussian", 3, (2.0, 1.0, 0.5, 0.1)), ("standard", 0, (1.0,) * 4), ("convex", 3, None)],
)
def test_centre_and_spread(
    latents: torch.Tensor, prior: str, centre: float, spread: tuple[float, ...] | None
) -> None:
    drawn = PRIORS.get(prior)(latents, NAMES, 0)
    expected = latents.mean(dim=0) if centre else torch.zeros(4)
    assert ((drawn.mean(dim=0) - expected).abs() < 0.2 * latents.std(dim=0).clamp(min=1)).all()
    if spread is None:  # mixtures lie within their parents
        assert (drawn <= latents.amax(dim=0)).all()
        assert (drawn >= latents.amin(dim=0)).all()
    else:
        assert torch.allclose(drawn.std(dim=0), torch.tensor(spread), rtol=0.25)
