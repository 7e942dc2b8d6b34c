"""Which square of a photo is taken."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasynth.images.framing import Box, Sides, frame, framed

sides = st.integers(2, 3000)


def blank(height: int, width: int) -> torch.Tensor:
    return torch.full((1, 1, 3), 90, dtype=torch.uint8).expand(height, width, 3)


@given(height=sides, width=sides, data=st.data())
def test_the_square_is_inside_the_photo_and_shows_the_face(
    height: int, width: int, data: st.DataObject
) -> None:
    left, top = data.draw(st.floats(0, width * 0.9)), data.draw(st.floats(0, height * 0.9))
    right, bottom = (
        data.draw(st.floats(left + 1, width + 2)),
        data.draw(st.floats(top + 1, height + 2)),
    )
    box = frame(blank(height, width), Box(left, top, right, bottom))
    side = box.right - box.left
    assert side == pytest.approx(box.bottom - box.top)
    assert 0 < side <= min(height, width) + 1e-6
    assert box.left >= 0
    assert box.top >= 0
    assert box.right <= width + 1e-6
    assert box.bottom <= height + 1e-6
    middle = (left + min(right, width)) / 2
    assert box.left - 1 <= middle <= box.right + 1


def test_a_square_photo_is_taken_whole() -> None:
    photo = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8)
    assert frame(photo) == (0, 0, 20, 20)
    assert framed(photo, 20).equal(photo)


@pytest.mark.parametrize("where", [0, 40, 80])
@pytest.mark.parametrize("upright", [True, False])
def test_without_a_face_the_square_is_where_the_detail_is(where: int, upright: bool) -> None:
    photo = torch.full((120, 40, 3), 200, dtype=torch.uint8)
    photo[where : where + 40 : 4] = 0
    photo = photo if upright else photo.transpose(0, 1).contiguous()
    box = frame(photo)
    start = box.top if upright else box.left
    assert start == pytest.approx(where, abs=3)


@given(height=sides, width=sides, wide=st.integers(1, 40), tall=st.integers(1, 40))
def test_of_several_rectangles_the_nearest_is_taken_as_large_as_can_be(
    height: int, width: int, wide: int, tall: int
) -> None:
    face = Box(width * 0.7, height * 0.1, width * 0.8, height * 0.2)
    box = frame(blank(height, width), face, wide / tall)
    size = box.right - box.left, box.bottom - box.top
    assert size[0] / size[1] == pytest.approx(wide / tall)
    assert size[0] == pytest.approx(width) or size[1] == pytest.approx(height)
    assert min(box.left, box.top, width - box.right, height - box.bottom) >= -1e-6
    assert box.right > width * 0.7 or size[0] < width * 0.1


@pytest.mark.parametrize(
    ("photo", "expected"), [((50, 40), (20, 16)), ((9, 90), (12, 24)), ((33, 32), (18, 18))]
)
def test_a_photo_gets_the_sides_nearest_to_its_ratio(photo: Sides, expected: Sides) -> None:
    choices = [(18, 18), (20, 16), (16, 20), (24, 12), (12, 24)]
    cut = framed(blank(*photo).contiguous(), choices)
    assert cut.shape == (*expected, 3)
    assert framed(cut, choices) is cut


def test_a_flat_photo_is_cut_in_the_middle() -> None:
    assert frame(blank(100, 40)) == (0, 30, 40, 70)
