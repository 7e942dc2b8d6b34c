from lorasynth.avatars.drawing import render_style
from lorasynth.avatars.negatives import FACELESS, FACES
from lorasynth.images import subjects_in


def test_other_drawings_are_a_source() -> None:
    source = subjects_in("not-avatars:12", size=16)
    first = [source.load(name).images for name in source.ids]
    assert len(first) == 12
    assert {image.shape for image in first} == {(1, 16, 16, 3)}
    assert len({image.numpy().tobytes() for image in first}) == 12
    assert source.load(source.ids[3]).images.equal(first[3])


def test_every_other_style_can_be_drawn() -> None:
    for style in (*FACELESS, *FACES):
        image = render_style(style, {"seed": "7", "backgroundColor": ["#336699"]}, 16)
        assert image.std() > 0, style
