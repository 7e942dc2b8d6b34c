import pytest
import torch

from lorasynth.avatars.attributes import PROMPTED, found, share_found, shares_found
from lorasynth.avatars.pool import IDENTITY_LABELS, LABELS, SCENE_LABELS

COLUMN = {name: i for i, name in enumerate(LABELS)}


def test_found_is_where_the_judge_agrees() -> None:
    asked = torch.zeros(2, len(LABELS), dtype=torch.int64)
    judged = asked.clone()
    judged[1, COLUMN["mouth"]] = 3
    agrees = found(judged, asked)
    assert not agrees[1, COLUMN["mouth"]]
    assert agrees.sum() == 2 * len(LABELS) - 1


@pytest.mark.parametrize(
    ("name", "alike"),
    [("mouth", {"sad", "serious"}), ("top", {"theCaesar", "theCaesarAndSidePart"})],
)
def test_values_that_are_nearly_one_drawing_count_as_one(name: str, alike: set[str]) -> None:
    column, values = COLUMN[name], LABELS[name]
    judged = torch.zeros(len(values), len(LABELS), dtype=torch.int64)
    judged[:, column] = torch.arange(len(values))
    for asked_value in values:
        asked = torch.zeros_like(judged)
        asked[:, column] = values.index(asked_value)
        hits = {values[i] for i in found(judged, asked)[:, column].nonzero().flatten()}
        assert hits == (alike if asked_value in alike else {asked_value})


def test_each_share_counts_its_own_attributes() -> None:
    """Four images; one attribute is wrong in one of them."""
    asked = torch.ones(4, len(LABELS), dtype=torch.int64)
    assert set(PROMPTED) == {"mouth", "clothes", "clothes_colour", "background"} < set(SCENE_LABELS)
    for name, column in COLUMN.items():
        judged = asked.clone()
        judged[2, column] = 0
        accuracy = 1 - (name in IDENTITY_LABELS) / (4 * len(IDENTITY_LABELS))
        following = 1 - (name in PROMPTED) / (4 * len(PROMPTED))
        assert share_found(judged, asked, tuple(IDENTITY_LABELS)) == pytest.approx(accuracy)
        assert share_found(judged, asked, PROMPTED) == pytest.approx(following)


def test_eyes_behind_opaque_glasses_do_not_count() -> None:
    names = list(LABELS)
    asked = torch.zeros(4, len(names), dtype=torch.int64)
    asked[:2, names.index("glasses")] = LABELS["glasses"].index("kurt")
    judged = asked.clone()
    judged[:3, names.index("eyes")] = 1  # wrong in the two hidden ones, and in one of two others
    judged[0, names.index("glasses")] = 0
    shares = shares_found(judged, asked)
    assert list(shares) == names
    assert shares["eyes"] == 0.5
    assert shares["glasses"] == 0.75
    assert shares["top"] == 1
