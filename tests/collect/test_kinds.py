"""Collection through every kind of base model: the same code, from images to a library."""

from dataclasses import replace

import pytest
import torch
from collecting import collect

from lorasynth.base import BaseModel, Memory
from lorasynth.engine import PriorPreservation, Recipe, train_fleet
from lorasynth.library import Library
from tiny_pipelines import KINDS, build

RECIPE = Recipe(
    steps=3,
    rank=2,
    targets=("to_q", "to_v", "ff.net.2"),
    images_per_step=2,
    caption_dropout=0.5,
    noise="own",
    prior=PriorPreservation(prompt="a portrait", images=2, steps=1),
)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "tiny"
    build(request.param).save_pretrained(folder)
    return folder


def test_an_adapter_does_not_depend_on_its_fleet(tmp_path, folder, source):
    base = BaseModel.load(folder, dtype=torch.float64)
    few = replace(source, count=3)
    for size in (1, 3):
        collect(base, few, tmp_path / f"{size}", RECIPE, fleet=size)
    one, three = (
        library.layout.flatten(library.factors(range(3)))
        for library in (Library.open(tmp_path / name) for name in "13")
    )
    torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-6)
    assert not one[0].allclose(one[1], atol=1e-4)


def test_a_half_precise_model_with_checkpointing_trains_nearly_alike(folder, subjects):
    memory = Memory(gradient_checkpointing=True)
    exact = train_fleet(BaseModel.load(folder), RECIPE, subjects[:2])
    low = train_fleet(
        BaseModel.load(folder, dtype=torch.bfloat16, memory=memory), RECIPE, subjects[:2]
    )
    torch.testing.assert_close(low.losses, exact.losses, rtol=0.05, atol=0)
    for module, factor in low.factors.items():
        assert factor.B.dtype == torch.float32
        likeness = torch.cosine_similarity(
            factor.B.flatten(1), exact.factors[module].B.flatten(1), dim=1
        )
        assert likeness.min() > 0.5
