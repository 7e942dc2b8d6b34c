"""Subjects as their adapters show them."""

from dataclasses import replace

import pytest
import torch

from lorasynth.adapter import Factor, Layout
from lorasynth.base import BaseModel
from lorasynth.collect import GeneratedConfig
from lorasynth.collect.described import GeneratedSubjects
from lorasynth.condition import ConditionEncoder, subject_conditions
from lorasynth.core.errors import LibraryError
from lorasynth.engine import Recipe
from lorasynth.engine.fleet import start_factors
from lorasynth.library import Library

CONFIG = GeneratedConfig(prompt="a portrait of sks", images=2, steps=2, batch=4)


@pytest.fixture
def library(pipeline_folder, tmp_path):
    """Five adapters that change a lot."""
    base = BaseModel.load(pipeline_folder)
    start = start_factors(base.target_linears(Recipe().targets), Recipe(rank=2))
    library = Library.create(tmp_path / "library", Layout.from_factors(start), gauge="none")
    torch.manual_seed(0)
    factors = {
        name: Factor(f.A.expand(5, -1, -1).clone(), torch.randn(5, *f.B.shape[1:]))
        for name, f in start.items()
    }
    library.append(factors, [{"id": f"s{i}"} for i in range(5)])
    return library


def test_a_subject_does_not_depend_on_those_beside_it(pipeline_folder, library):
    source = GeneratedSubjects(BaseModel.load(pipeline_folder), library, CONFIG)
    together = list(source.many(source.ids))
    assert [subject.id for subject in together] == library.ids
    alone = source.load("s3")
    assert alone.images.shape == (2, 16, 16, 3)
    assert alone.captions == ["a portrait of sks"] * 2
    difference = (alone.images.int() - together[3].images.int()).abs()
    assert difference.max() <= 2
    assert (together[3].images != together[2].images).float().mean() > 0.5


class Halves(ConditionEncoder):
    """Finds a face in every second image only, or in none."""

    name, image_size, width, licence = "halves", 16, 1, "Apache-2.0"

    def _fingerprint(self):
        return "0"

    def __init__(self, faces):
        self.faces = faces

    def embed(self, images):
        return torch.arange(1.0, 1 + len(images))[:, None]

    def presence(self, images):
        return torch.tensor(self.faces)[: len(images)]

    def save(self, folder):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("faces", "expected"),
    [([0.1, 0.9, 0.2, 0.8], [2, 4, 2, 4]), ([0.1] * 4, [1, 2, 3, 4]), ([1.0] * 4, [1, 2, 3, 4])],
)
def test_images_without_a_face_give_way(pipeline_folder, library, faces, expected):
    config = replace(CONFIG, images=4)
    source = GeneratedSubjects(BaseModel.load(pipeline_folder), library, config)
    row = subject_conditions(Halves(faces), source.load("s1"), made=True)
    assert row.flatten().tolist() == expected


def test_strangers_are_refused(pipeline_folder, library):
    source = GeneratedSubjects(BaseModel.load(pipeline_folder), library, CONFIG)
    with pytest.raises(LibraryError, match="'nobody'"):
        source.load("nobody")
