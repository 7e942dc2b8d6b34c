"""Which square of a photo is taken."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasynth.images.framing import Box, frame, framed

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


def test_a_flat_photo_is_cut_in_the_middle() -> None:
    assert frame(blank(100, 40)) == (0, 30, 40, 70)
