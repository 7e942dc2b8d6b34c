import numpy as np

from lorasynth.avatars.drawing import AvatarSubjects, render_style
from lorasynth.avatars.negatives import _FACELESS_STYLES, draw_negative, tear
from lorasynth.core.randomness import numpy_stream


def test_negatives_are_images_that_differ() -> None:
    drawn = [draw_negative(numpy_stream(0, i), 16) for i in range(60)]
    assert all(image.shape == (16, 16, 3) and image.dtype == np.uint8 for image in drawn)
    assert len({image.tobytes() for image in drawn}) == 60
    assert np.array_equal(draw_negative(numpy_stream(0, 7), 16), drawn[7])


def test_every_faceless_style_can_be_drawn() -> None:
    for style in _FACELESS_STYLES:
        image = render_style(style, {"seed": "7", "backgroundColor": ["#336699"]}, 16)
        assert image.std() > 0, style


def test_a_torn_portrait_keeps_its_colours_but_not_its_face() -> None:
    subjects = AvatarSubjects(split="train", count=1, images=1, size=32)
    image = subjects.draw(subjects.ids[0])[0].numpy()
    torn = tear(image, numpy_stream(0, "tear"))
    assert torn.shape == image.shape
    assert not np.array_equal(torn, image)
    for channel in range(3):
        assert np.array_equal(np.sort(torn[..., channel], None), np.sort(image[..., channel], None))
    tiles = {torn[y : y + 8, x : x + 8].tobytes() for y in range(0, 32, 8) for x in range(0, 32, 8)}
    assert image[8:16, 8:16].tobytes() in tiles
