from dataclasses import replace

import pytest
import torch
from mean_predictor import MeanPredictor

from lorasynth.adapter import Factor, map_factors
from lorasynth.core.errors import CollectionError
from lorasynth.engine.recipe import Recipe
from lorasynth.studies.repeatability import Candidate, compare, split_images, train_twice

RECIPE = Recipe(steps=6, rank=2, targets=("to_q", "to_v"), images_per_step=2)


def random_stack(n, seed=0):
    torch.manual_seed(seed)
    return {
        name: Factor(torch.randn(n, 2, width).double(), torch.randn(n, 5, 2).double())
        for name, width in (("one", 4), ("two", 6))
    }


def dense(factors):
    return torch.cat([(f.B @ f.A).flatten(1) for f in factors.values()], dim=1)


def test_cosines_are_those_of_the_dense_updates_in_any_gauge():
    first, second = random_stack(3), random_stack(3, seed=1)
    mixing = torch.randn(2, 2).double()
    turned = {k: Factor(mixing.inverse() @ f.A, f.B @ mixing) for k, f in second.items()}
    same, different = compare(first, turned)
    a, b = (torch.nn.functional.normalize(dense(f)) for f in (first, second))
    assert same == pytest.approx(float((a * b).sum(1).mean()))
    off = (a @ b.T)[~torch.eye(3, dtype=torch.bool)]
    assert different == pytest.approx(float(off.mean()))


def test_equal_adapters_repeat_whatever_their_size():
    first = random_stack(4)
    assert compare(first, map_factors(lambda part: 3 * part, first))[0] == pytest.approx(1)


def test_halves_share_no_image(subjects):
    first, second = split_images(subjects[0])
    assert len(first.images) + len(second.images) == len(subjects[0].images)
    assert first.id != second.id
    for half in (first, second):
        assert len(half.captions) == len(half.images)
    assert torch.equal(second.images[0], subjects[0].images[1])
    assert second.captions == ["a portrait b"]


def test_adapters_of_one_subject_are_closer(base, subjects):
    # All images of a subject are the same one, so its halves teach the same.
    alike = [
        replace(one, photos=one.images[:1].repeat(4, 1, 1, 1), captions=["a"] * 4)
        for one in subjects[:3]
    ]
    # Colour alone tells these subjects apart, so it must be learned for longer than noise is.
    longer = replace(RECIPE, steps=48, learning_rate=0.05)
    same, different = compare(*train_twice(base, Candidate(longer), alike))
    assert same == pytest.approx(1)
    assert different < 0.999


def test_a_predictor_sees_one_half_only(base, subjects):
    still = replace(RECIPE, learning_rate=1e-12)
    anchor = MeanPredictor(base, still)
    first, second = train_twice(base, Candidate(still, anchor), subjects)
    for number, factors in enumerate((first, second)):
        predicted = anchor.predict([split_images(one)[number] for one in subjects])
        for name, factor in factors.items():
            torch.testing.assert_close(factor.B, predicted[name].B)


def test_too_little_to_compare(base, subjects):
    with pytest.raises(CollectionError, match="at least two subjects"):
        compare(*train_twice(base, Candidate(RECIPE), subjects[:1]))
    single = replace(subjects[0], photos=subjects[0].images[:1], captions=["a"])
    with pytest.raises(CollectionError, match="at least 2 images"):
        train_twice(base, Candidate(RECIPE), [single, subjects[1]])
