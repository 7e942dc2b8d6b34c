"""Conditions of several parts: facts in words, and what several encoders see."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lorasynth.condition import (
    AttributeEncoder,
    AttributesConfig,
    ConditionEncoder,
    JoinedEncoder,
    TrainedConfig,
    TrainedEncoder,
    load_encoder,
    subject_condition,
    subject_conditions,
)
from lorasynth.core.errors import BundleError, ConfigError, ImageError
from lorasynth.images import Subject

ROWS = [
    {"id": "ann", "hat": "top", "male": 0, "age": 1.0, "same": 1},
    {"id": "ben", "hat": "bowler", "male": 1, "age": None, "same": 1},
    {"id": "cyd", "hat": "none", "male": 1, "age": 2.5, "same": 1},
]


@pytest.fixture
def facts() -> AttributeEncoder:
    return AttributeEncoder(AttributesConfig.of(ROWS, ["hat", "male"]))


@pytest.fixture
def both() -> AttributeEncoder:
    torch.manual_seed(0)
    identity = TrainedEncoder(TrainedConfig(name="tiny", image_size=16, width=6)).eval()
    return AttributeEncoder(AttributesConfig.of(ROWS, ["hat", "male"]), identity)


def subject(facts: dict[str, str | float]) -> Subject:
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    return Subject(id="ann", photos=images, captions=["", ""], attributes=facts)


def test_a_table_says_which_values_there_are() -> None:
    config = AttributesConfig.of(ROWS, ["hat", "male", "age"])
    assert config.attributes == {
        "hat": ["bowler", "none", "top"],
        "male": ["0", "1"],
        "age": ["1", "2.5"],
    }


def test_facts_are_blocks_of_a_unit_vector(facts: AttributeEncoder) -> None:
    [row] = facts.describe(None, {"hat": "none", "male": True})
    torch.testing.assert_close(row, normalize(torch.tensor([0.0, 1, 0, 0, 1]), dim=0))
    [unknown] = facts.describe(None, {"male": 0.0, "shoes": "red"})
    torch.testing.assert_close(unknown, torch.tensor([0.0, 0, 0, 1, 0]))


def test_a_subject_gives_both_images_alone_and_facts_alone(both: AttributeEncoder) -> None:
    ann = subject({"hat": "top", "male": 0, "age": 9})
    assert both.identity is not None
    seen = both.identity.embed(ann.images)
    for rows in (subject_conditions(both, ann), subject_conditions(both, ann, made=True)):
        assert rows.shape == (6, 11)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(6))
        torch.testing.assert_close(normalize(rows[:2, :6], dim=1), seen)
        torch.testing.assert_close(rows[2:4, :6], seen)
        assert not rows[2:4, 6:].any()
        assert not rows[4:, :6].any()
        torch.testing.assert_close(rows[:2, 6:], rows[4:, 6:] / 2**0.5)


def test_facts_alone_need_no_images(facts: AttributeEncoder) -> None:
    none = Subject(
        id="ann",
        photos=torch.zeros(0, 1, 1, 3, dtype=torch.uint8),
        captions=[],
        attributes={"hat": "top"},
    )
    assert subject_conditions(facts, none).shape == (1, 5)
    assert subject_condition(facts, [], [], facts={"hat": "top"}).tolist() == [0, 0, 1, 0, 0]
    with pytest.raises(ConfigError, match="looks at no images"):
        facts.embed(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


def test_it_is_saved_with_the_encoder_beside_it(
    facts: AttributeEncoder, both: AttributeEncoder, tmp_path: Path
) -> None:
    for encoder in (facts, both):
        folder = tmp_path / str(encoder.width)
        folder.mkdir()
        encoder.save(folder)
        again = load_encoder(folder)
        assert isinstance(again, AttributeEncoder)
        assert again.config == encoder.config
        assert (again.identity is None) == (encoder.identity is None)
    assert facts.fingerprint == load_encoder(tmp_path / "5").fingerprint
    assert facts.fingerprint != both.fingerprint
    (tmp_path / "5" / "config.json").write_text('{"kind": "attributes", "attributes": 3}')
    with pytest.raises(BundleError, match="must hold a condition encoder"):
        load_encoder(tmp_path / "5")


def test_a_table_that_tells_nothing_is_refused() -> None:
    """What a command may be asked for is in commands/test_attributes.py."""
    with pytest.raises(ConfigError, match="same has one value"):
        AttributesConfig.of(ROWS, ["same"])
    with pytest.raises(ConfigError, match="got none"):
        AttributesConfig.of(ROWS, [])


# Joined encoders


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
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    expected = torch.cat([red.embed(images), green.embed(images)], dim=1) / 2**0.5
    torch.testing.assert_close(both.embed(images), expected)
    ann = Subject(id="ann", photos=images, captions=[""] * 3)
    close = {"atol": 5e-3, "rtol": 0}  # photos are scaled to what each part looks at
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
