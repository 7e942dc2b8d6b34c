"""Conditions from facts, alone and beside what images show."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from lorasynth.condition import (
    AttributeEncoder,
    AttributesConfig,
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


def test_what_cannot_be_is_refused(facts: AttributeEncoder, both: AttributeEncoder) -> None:
    with pytest.raises(ConfigError, match="must be a column of the table"):
        AttributesConfig.of(ROWS, ["shoes"])
    with pytest.raises(ConfigError, match="same has one value"):
        AttributesConfig.of(ROWS, ["same"])
    with pytest.raises(ConfigError, match="got none"):
        AttributesConfig.of(ROWS, [])
    with pytest.raises(ConfigError, match="hat must be one of bowler, none, top, but is 'cap'"):
        facts.describe(None, {"hat": "cap"})
    with pytest.raises(ConfigError, match="needs an image or one of hat, male"):
        subject_condition(both, [], [])
    assert both.identity is not None
    with pytest.raises(ConfigError, match="--attribute is for encoders of attributes"):
        subject_condition(both.identity, [], [], facts={"hat": "top"})
    with pytest.raises(ImageError, match="got none"):
        subject_condition(both.identity, [], [])
    with pytest.raises(ConfigError, match="no attribute 'shoes'"):
        subject_condition(facts, [], [], facts={"shoes": "red"})
