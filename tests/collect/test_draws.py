"""What a subject draws depends on the seed and the subject alone."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasynth.engine.draws import NOISE_CHUNK, Draw, draw_steps
from lorasynth.engine.recipe import Recipe

RECIPES = st.builds(
    Recipe,
    steps=st.integers(1, 2 * NOISE_CHUNK + 3),
    images_per_step=st.integers(1, 4),
    noise=st.sampled_from(["shared", "own"]),
    caption_dropout=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 3),
)
NAMES = st.lists(st.text(max_size=5), min_size=1, max_size=5, unique=True)


def draw_all(base, recipe, names, counts=None):
    """All steps' draws, each stacked: steps, n, m, ..."""
    steps = draw_steps(base, recipe, names, counts or [len(name) + 1 for name in names])
    return Draw(*(torch.stack(parts) for parts in zip(*steps, strict=True)))


@settings(max_examples=25, deadline=None)
@given(recipe=RECIPES, names=NAMES, data=st.data())
def test_neighbours_and_order_do_not_matter(base, recipe, names, data):
    together = draw_all(base, recipe, names)
    some = data.draw(st.permutations(names))[: data.draw(st.integers(1, len(names)))]
    rows = [names.index(name) for name in some]
    for part, whole in zip(draw_all(base, recipe, some), together, strict=True):
        assert torch.equal(part, whole[:, rows])


@settings(max_examples=15, deadline=None)
@given(recipe=RECIPES, more=st.integers(1, 20))
def test_longer_training_begins_alike(base, recipe, more):
    short = draw_all(base, recipe, ["ab", "c"])
    long = draw_all(base, replace(recipe, steps=recipe.steps + more), ["ab", "c"])
    for part, whole in zip(short, long, strict=True):
        assert torch.equal(part, whole[: recipe.steps])


@settings(max_examples=15, deadline=None)
@given(recipe=RECIPES, count=st.integers(1, 6))
def test_images_come_in_whole_rounds(base, recipe, count):
    images = draw_all(base, recipe, ["a"], [count]).images.flatten()
    whole = len(images) // count * count
    rounds = images[:whole].reshape(-1, count).sort(dim=1).values
    assert torch.equal(rounds, torch.arange(count).expand_as(rounds))
    assert len(set(images[whole:].tolist())) == len(images) - whole


def test_noise_is_shared_or_own(base):
    shared = draw_all(base, Recipe(steps=3, noise="shared"), ["a", "b"])
    own = draw_all(base, Recipe(steps=3, noise="own"), ["a", "b"])
    assert torch.equal(shared.noise[:, 0], shared.noise[:, 1])
    assert torch.equal(shared.times[:, 0], shared.times[:, 1])
    assert not torch.isclose(own.noise[:, 0], own.noise[:, 1]).any()


def test_distributions(base):
    draw = draw_all(base, Recipe(steps=2000, caption_dropout=0.25, noise="own"), ["a", "b"], [4, 4])
    assert abs(draw.noise.mean()) < 0.01
    assert abs(draw.noise.std() - 1) < 0.01
    last = base.scheduler.config.num_train_timesteps - 1
    assert draw.times.min() >= 0
    assert draw.times.max() <= last
    assert abs(draw.times.double().mean() / last - 0.5) < 0.01
    assert abs(draw.dropped.double().mean() - 0.25) < 0.02
    assert torch.equal(draw.images[:, 0].flatten().bincount(), torch.full((4,), 2000))
