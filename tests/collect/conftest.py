"""The tiny base model, predicting noise, and subjects of random images."""

from dataclasses import dataclass

import pytest
import torch

from lorasynth.base import BaseModel
from lorasynth.core.randomness import torch_stream
from lorasynth.images import Subject

SIDE = 16


@dataclass(frozen=True)
class RandomSubjects:
    """A source of `count` subjects, each random images around a colour of its own."""

    count: int
    images: int = 3

    @property
    def ids(self):
        return [f"subject-{index:03d}" for index in range(self.count)]

    def load(self, subject_id):
        stream = torch_stream(7, subject_id)
        colour = torch.randint(64, 192, (1, 1, 1, 3), generator=stream)
        noise = torch.randint(-60, 60, (self.images, SIDE, SIDE, 3), generator=stream)
        return Subject(
            id=subject_id,
            photos=(colour + noise).to(torch.uint8),
            captions=[f"a portrait {'abc'[index % 3]}" for index in range(self.images)],
            attributes={"redness": float(colour[..., 0])},
        )


@pytest.fixture(scope="session")
def folder(make_pipeline, tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("base") / "tiny", "epsilon")


@pytest.fixture(scope="session")
def base(folder):
    return BaseModel.load(folder, dtype=torch.float64)


@pytest.fixture
def source():
    return RandomSubjects(5)


@pytest.fixture
def subjects(source):
    return [source.load(name) for name in source.ids]
