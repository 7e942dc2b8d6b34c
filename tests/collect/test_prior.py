"""Prior preservation: images of the class are made once, and weigh in every adapter's loss."""

from dataclasses import replace

import pytest
import torch
from collecting import collect

from lorasynth.base import BaseModel
from lorasynth.collect import worker
from lorasynth.core.errors import BundleError, CollectionError
from lorasynth.engine import PriorPreservation, Recipe, train_fleet
from lorasynth.engine.fleet import class_latents
from lorasynth.library import Library

CLASS = PriorPreservation(prompt="a portrait", images=3, steps=2)
RECIPE = Recipe(
    steps=2, rank=2, targets=("to_q", "to_v"), images_per_step=2, average=0.0, prior=CLASS
)


def updates(base, recipe, subjects, **options):
    factors = train_fleet(base, recipe, subjects, **options).factors
    return torch.cat([factor.B.flatten(1) for factor in factors.values()], dim=1)


def test_class_images_come_from_streams_of_their_own(pipeline_folder):
    base = BaseModel.load(pipeline_folder, dtype=torch.float64)
    latents = class_latents(base, RECIPE)
    assert latents.shape == (3, *base.latent_shape)
    fewer = class_latents(base, replace(RECIPE, prior=replace(CLASS, images=2)))
    torch.testing.assert_close(fewer, latents[:2], atol=0.02, rtol=0)  # images are rounded
    spread = (latents[0] - latents[1]).norm()
    assert spread > 10 * (fewer - latents[:2]).norm()
    assert (class_latents(base, replace(RECIPE, seed=1))[0] - latents[0]).norm() > 0.3 * spread


def test_the_loss_of_the_class_is_added_with_its_weight(base, subjects):
    one = replace(RECIPE, steps=1, optimiser="sgd", learning_rate=0.1, clip=None)
    classes = class_latents(base, RECIPE)

    def moved(weight):
        chosen = PriorPreservation() if weight is None else replace(CLASS, weight=weight)
        recipe = replace(one, prior=chosen)
        return updates(base, recipe, subjects[:2], classes=classes)

    alone, once, twice = moved(None), moved(1.0), moved(2.0)
    assert (once - alone).norm() > 0.01 * alone.norm()
    torch.testing.assert_close(twice - alone, 2 * (once - alone))


def test_losses_are_those_of_the_subject_alone(base, subjects):
    with_prior = train_fleet(base, RECIPE, subjects[:1]).losses
    without = train_fleet(base, replace(RECIPE, prior=PriorPreservation()), subjects[:1]).losses
    torch.testing.assert_close(with_prior[:, 0], without[:, 0])


def test_class_images_are_made_once_for_a_library(tmp_path, base, source, monkeypatch):
    path = tmp_path / "lib"
    collect(base, replace(source, count=2), path, RECIPE, fleet=1)
    [kept] = tmp_path.glob("class-*.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(worker, "class_latents", lambda *_: pytest.fail("made again"))
        assert collect(base, source, path, RECIPE).collected == source.ids[2:]
    library = Library.open(path)
    assert library.info.recipe["prior"]["prompt"] == "a portrait"
    with pytest.raises(CollectionError, match="has prior="):
        collect(base, source, path, replace(RECIPE, prior=PriorPreservation()))
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(BundleError, match="class"):
        collect(base, replace(source, count=6), path, RECIPE)


def test_class_images_of_another_prior_seed_or_base_are_not_taken(tmp_path, base, source, folder):
    other = replace(RECIPE, prior=replace(CLASS, prompt="a cat"))
    asked = [(base, RECIPE), (base, replace(RECIPE, seed=1)), (base, other)]
    asked.append((BaseModel.load(folder, dtype=torch.float64, image_size=8), RECIPE))
    for number, (model, recipe) in enumerate(asked, 1):
        collect(model, replace(source, count=1), tmp_path / f"lib {number}", recipe)
        assert len(list(tmp_path.glob("class-*"))) == number
