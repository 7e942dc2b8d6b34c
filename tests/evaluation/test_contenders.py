"""Baselines, and the choice of a strength."""

from pathlib import Path

import pytest
import torch

from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.evaluation.baselines import Ridge, mean, mlp, nearest
from lorasynth.evaluation.contenders import best_strength


@pytest.mark.parametrize(
    ("strengths", "expected"),
    [((1.0, 1.2, 1.5), 1.2), ((1.0, 1.5, 2.0), 1.0), ((2.0, 1.5), 1.5), ((0.5, 0.85), 0.85)],
)
@pytest.mark.parametrize("prompts", ["prompt_following", "prompt_score"])
def test_a_strength_may_not_cost_what_prompts_say(
    strengths: tuple[float, ...], expected: float, prompts: str
) -> None:
    """Similarity is highest at strength 1.5, and prompts are lost beyond 1.2."""

    def measured(strength: float) -> dict[str, torch.Tensor]:
        found = [1 - abs(strength - 1.5), 1 - max(0.0, strength - 1.2)]
        like, follows = (torch.full((2,), value) for value in found)
        return {"identity_similarity": like, prompts: follows}

    tried = {strength: measured(strength) for strength in strengths}
    assert best_strength(tried, measured(0.0)) == expected


def test_a_strength_may_not_cost_attributes_either() -> None:
    """Beyond 1.15 the similarity rises a little, and attributes fall more."""
    rows = {1.0: (0.83, 0.95), 1.15: (0.85, 0.94), 1.3: (0.855, 0.92), 0.0: (0.0, 0.28)}
    names = ("identity_similarity", "attribute_accuracy")
    tried = {
        strength: {n: torch.full((2,), v) for n, v in zip(names, values, strict=True)}
        for strength, values in rows.items()
    }
    alone = tried.pop(0.0)
    assert best_strength(tried, alone) == 1.15
    for figures in tried.values():
        del figures["attribute_accuracy"]
    assert best_strength(tried, {"identity_similarity": torch.zeros(2)}) == 1.3


@pytest.fixture
def linear() -> LatentLibrary:
    """Latents that are a linear function of the conditions."""
    generator = torch.Generator().manual_seed(0)
    conditions = torch.nn.functional.normalize(torch.randn(200, 3, 6, generator=generator), dim=2)
    conditions = conditions[:, :1] + 0.01 * conditions
    weights = torch.randn(6, 4, generator=generator)
    return LatentLibrary(
        ids=tuple(str(i) for i in range(200)),
        latents=conditions.mean(dim=1) @ weights + 1,
        conditions=conditions,
    )


def test_regressions_recover_a_linear_map(linear: LatentLibrary) -> None:
    spread = (mean(linear)(linear.conditions[:, 0]) - linear.latents).square().mean()
    for predictor, share in ((Ridge(linear), 0.01), (mlp(linear), 0.1)):
        error = (predictor(linear.conditions[:, 0]) - linear.latents).square().mean()
        assert error < share * spread


def test_nearest_returns_the_own_adapter_of_a_known_subject(linear: LatentLibrary) -> None:
    found = nearest(linear)(linear.conditions[:, 1])
    assert torch.equal(found, linear.latents)


def test_a_latent_library_survives_saving(linear: LatentLibrary, tmp_path: Path) -> None:
    linear.save(tmp_path / "library")
    loaded = LatentLibrary.load(tmp_path / "library")
    assert loaded.ids == linear.ids
    torch.testing.assert_close(loaded.latents, linear.latents, rtol=1e-3, atol=1e-3)
