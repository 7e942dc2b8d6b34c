"""Prior preservation: images of the class are made once, and weigh in every adapter's loss."""

from dataclasses import replace

import pytest
import torch

from lorasynth.base import BaseModel
from lorasynth.collect import collect, collector
from lorasynth.core.config import from_dict, to_dict
from lorasynth.core.errors import BundleError, CollectionError, ConfigError
from lorasynth.engine import prior
from lorasynth.engine.fleet import train_fleet
from lorasynth.engine.prior import Prior, class_latents, kept_class_latents
from lorasynth.engine.recipe import PRESETS, Recipe
from lorasynth.library import Library

CLASS = Prior(prompt="a portrait", images=3, steps=2)
RECIPE = Recipe(
    steps=2, rank=2, targets=("to_q", "to_v"), images_per_step=2, average=0.0, prior=CLASS
)


def updates(base, recipe, subjects, **options):
    factors = train_fleet(base, recipe, subjects, dtype=torch.float64, **options).factors
    return torch.cat([factor.B.flatten(1) for factor in factors.values()], dim=1)


def test_class_images_come_from_streams_of_their_own(pipeline_folder):
    base = BaseModel.load(pipeline_folder, dtype=torch.float64)
    latents = class_latents(base, CLASS, 0)
    assert latents.shape == (3, *base.latent_shape)
    fewer = class_latents(base, replace(CLASS, images=2), 0)
    torch.testing.assert_close(fewer, latents[:2], atol=0.02, rtol=0)  # images are rounded
    spread = (latents[0] - latents[1]).norm()
    assert spread > 10 * (fewer - latents[:2]).norm()
    assert (class_latents(base, CLASS, 1)[0] - latents[0]).norm() > 0.3 * spread


def test_the_loss_of_the_class_is_added_with_its_weight(base, subjects):
    one = replace(RECIPE, steps=1, optimiser="sgd", learning_rate=0.1, clip=None)
    classes = class_latents(base, CLASS, 0)

    def moved(weight):
        chosen = None if weight is None else replace(CLASS, weight=weight)
        recipe = replace(one, prior=chosen)
        return updates(base, recipe, subjects[:2], classes=classes)

    alone, once, twice = moved(None), moved(1.0), moved(2.0)
    assert (once - alone).norm() > 0.01 * alone.norm()
    torch.testing.assert_close(twice - alone, 2 * (once - alone))


def test_losses_are_those_of_the_subject_alone(base, subjects):
    with_prior = train_fleet(base, RECIPE, subjects[:1]).losses
    without = train_fleet(base, replace(RECIPE, prior=None), subjects[:1]).losses
    torch.testing.assert_close(with_prior[:, 0], without[:, 0])


def test_fleet_size_and_order_do_not_matter(base, subjects):
    recipe = replace(RECIPE, noise="own")
    three = updates(base, recipe, subjects[:3])
    two = updates(base, recipe, subjects[1::-1])
    torch.testing.assert_close(two, three[[1, 0]], rtol=1e-9, atol=1e-12)


def test_class_images_are_made_once_for_a_library(tmp_path, base, source, monkeypatch):
    path = tmp_path / "lib"
    collect(base, replace(source, count=2), path, RECIPE, fleet_size=1)
    [kept] = tmp_path.glob("class-*.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(prior, "class_latents", lambda *_: pytest.fail("made again"))
        assert collect(base, source, path, RECIPE).collected == source.ids[2:]
    library = Library.open(path)
    assert library.info.recipe["prior"]["prompt"] == "a portrait"
    with pytest.raises(CollectionError, match="has prior="):
        collect(base, source, path, replace(RECIPE, prior=None))
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(BundleError, match="class"):
        collect(base, replace(source, count=6), path, RECIPE)


def test_class_images_of_another_prior_seed_or_base_are_not_taken(tmp_path, base, folder):
    def kept(model, chosen, seed):
        path = tmp_path / "lib"
        return kept_class_latents(model, chosen, seed, path, lambda _: torch.rand(1, 1, 1, 1))

    small = BaseModel.load(folder, image_size=8)
    asked = [(base, CLASS, 0), (base, CLASS, 1), (base, replace(CLASS, prompt="a cat"), 0)]
    found = [kept(*one) for one in [*asked, (small, CLASS, 0)]]
    assert all(torch.equal(one, kept(*args)) for one, args in zip(found, asked, strict=False))
    assert len({float(one) for one in found}) == 4


def test_latents_that_are_given_are_taken(tmp_path, base, source, monkeypatch):
    monkeypatch.setattr(collector, "kept_class_latents", lambda *_: pytest.fail("made again"))
    classes = class_latents(base, CLASS, 0)
    collect(base, replace(source, count=1), tmp_path / "lib", RECIPE, classes=classes)
    assert not list(tmp_path.glob("class-*"))


def test_a_recipe_without_a_prior_is_stated_as_before():
    assert "prior" not in Recipe().stated
    assert RECIPE.stated["prior"]["images"] == 3
    assert RECIPE.fingerprint != replace(RECIPE, prior=None).fingerprint
    assert from_dict(Recipe, to_dict(RECIPE)) == RECIPE


def test_weights2weights_has_200_class_images():
    preset = PRESETS["weights2weights"].prior
    assert preset is not None
    assert (preset.images, preset.weight) == (200, 1.0)


def test_bad_input():
    with pytest.raises(ConfigError, match="at least 1 image"):
        Prior(prompt="a person", images=0)
    with pytest.raises(ConfigError, match="Prior has no option 'wait'"):
        from_dict(Recipe, {"prior": {"prompt": "a person", "wait": 2.0}})
