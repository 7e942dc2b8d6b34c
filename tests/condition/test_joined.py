"""Several encoders as one condition."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lorasynth.condition import (
    AttributeEncoder,
    AttributesConfig,
    ConditionEncoder,
    JoinedEncoder,
    subject_condition,
    subject_conditions,
)
from lorasynth.core.errors import ConfigError, ImageError
from lorasynth.images import Subject


class Mean(ConditionEncoder):
    """The mean of one part of each image, with 1 beside it."""

    licence = "Apache-2.0"

    def __init__(self, channel: int, size: int = 8) -> None:
        self.channel, self.image_size, self.width = channel, size, 2
        self.name = f"mean-{channel}"

    def _fingerprint(self) -> str:
        return self.name

    def embed(self, images: Tensor) -> Tensor:
        mean = images[..., self.channel].float().mean(dim=(1, 2)) / 255
        return normalize(torch.stack([mean, torch.ones(len(mean))], dim=1), dim=1)

    def presence(self, images: Tensor) -> Tensor:
        return (images[..., self.channel].float().mean(dim=(1, 2)) > 9).float()

    def save(self, folder: object) -> None:
        raise NotImplementedError


def test_each_part_sees_the_subject_as_it_does_alone() -> None:
    red, green = Mean(0), Mean(1, 16)
    both = JoinedEncoder([red, green])
    assert (both.name, both.width, both.image_size) == ("mean-0-and-mean-1", 4, 16)
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    expected = torch.cat([red.embed(images), green.embed(images)], dim=1) / 2**0.5
    torch.testing.assert_close(both.embed(images), expected)
    ann = Subject(id="ann", photos=images, captions=[""] * 3)
    close = {"atol": 2e-3, "rtol": 0}  # photos are scaled to what each part looks at
    torch.testing.assert_close(subject_conditions(both, ann), expected, **close)
    torch.testing.assert_close(subject_conditions(both, ann, made=True), expected, **close)
    found = subject_condition(both, list(images), ["a", "b", "c"])
    alone = [subject_condition(part, list(images), ["a", "b", "c"]) for part in (red, green)]
    torch.testing.assert_close(found, torch.cat(alone) / 2**0.5)


def test_what_one_part_misses_is_missing() -> None:
    both = JoinedEncoder([Mean(0), Mean(1)])
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    images[..., 0] = 200
    images[1, ..., 1] = 200
    assert both.presence(images).tolist() == [0, 1]
    with pytest.raises(ImageError, match=r"'mean-0-and-mean-1' knows, .* finds none in a"):
        subject_condition(both, [images[0]], ["a"])


def test_parts_may_know_facts() -> None:
    facts = AttributeEncoder(AttributesConfig(attributes={"hat": ["none", "top"]}))
    both = JoinedEncoder([Mean(0), facts])
    images = torch.full((1, 8, 8, 3), 200, dtype=torch.uint8)
    row = subject_condition(both, list(images), ["a"], facts={"hat": "top"})
    torch.testing.assert_close(row[2:], torch.tensor([0, 0.5**0.5]))


def test_one_encoder_is_not_joined() -> None:
    with pytest.raises(ConfigError, match="two encoders or more"):
        JoinedEncoder([Mean(0)])
