import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasynth.core.config import from_dict, to_dict
from lorasynth.engine import PRESETS, PriorPreservation, Recipe


@pytest.mark.parametrize("name", PRESETS)
def test_survives_json(name):
    again = from_dict(Recipe, to_dict(PRESETS[name]))
    assert again == PRESETS[name]
    assert again.fingerprint == PRESETS[name].fingerprint


def test_a_recipe_of_an_earlier_release_is_read():
    earlier = to_dict(Recipe(images_per_step=2)) | {"pictures_per_step": 2, "prior": None}
    del earlier["images_per_step"]
    assert from_dict(Recipe, earlier) == Recipe(images_per_step=2)


def test_fingerprint_depends_on_every_choice():
    prior = Recipe(prior=PriorPreservation(prompt="a person"))
    others = [Recipe(seed=1), Recipe(rank=5), Recipe(targets=("to_q",)), prior]
    assert len({recipe.fingerprint for recipe in [Recipe(), *others]}) == 5
    assert "prior" not in Recipe().stated, "as before there was any"
    assert prior.stated["prior"]["images"] == 200


def test_weights2weights_is_the_published_recipe():
    recipe = PRESETS["weights2weights"]
    assert (recipe.rank, recipe.scale, recipe.steps) == (1, 27.0, 800)
    assert (recipe.learning_rate, recipe.trained) == (1e-4, "both")
    assert (recipe.prior.images, recipe.prior.weight) == (200, 1.0)


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
        {"start": "own"},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"warmup_steps": 300},
        {"average": 1.5},
        {"clip": 0.0},
        {"prior": {"prompt": "a person", "images": 0}},
    ],
)
def test_values_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Recipe(**options)
