import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasynth.core.config import from_dict, to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.engine.recipe import PRESETS, Recipe


@pytest.mark.parametrize("name", PRESETS)
def test_survives_json(name):
    recipe = PRESETS[name]
    again = from_dict(Recipe, to_dict(recipe))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


def test_fingerprint_depends_on_every_choice():
    others = [Recipe(seed=1), Recipe(rank=5), Recipe(targets=("to_q",)), Recipe(average=0.2)]
    assert len({recipe.fingerprint for recipe in [Recipe(), *others]}) == 5


def test_weights2weights_is_the_published_recipe():
    recipe = PRESETS["weights2weights"]
    assert (recipe.rank, recipe.scale, recipe.steps) == (1, 27.0, 800)
    assert recipe.learning_rate == 1e-4
    assert recipe.trained == "both"


@given(
    steps=st.integers(2, 500),
    warmup=st.floats(0, 0.9),
    schedule=st.sampled_from(["constant", "cosine"]),
)
def test_rate_rises_then_never_rises_again(steps, warmup, schedule):
    warmup_steps = int(warmup * steps)
    recipe = Recipe(steps=steps, warmup_steps=warmup_steps, schedule=schedule, learning_rate=0.5)
    rates = [recipe.rate(step) for step in range(steps)]
    rising, falling = rates[: warmup_steps + 1], rates[warmup_steps:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert max(rates) == 0.5
    assert min(rates) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"targets": ()},
        {"rank": 0},
        {"alpha": 0.0},
        {"start": "own"},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"warmup_steps": 300},
        {"steps": 0},
        {"average": 1.5},
        {"clip": 0.0},
        {"caption_dropout": -0.1},
    ],
)
def test_values_out_of_range(options):
    with pytest.raises(ConfigError, match=rf"Recipe\.{next(iter(options))} must be"):
        Recipe(**options)
