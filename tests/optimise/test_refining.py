"""What refining says of photos, by the shipped models."""

from dataclasses import replace

import pytest

from lorasynth.adapter import stack
from lorasynth.base import BaseModel
from lorasynth.engine import PRESETS
from lorasynth.images import PORTRAIT, Subject, subjects_in
from lorasynth.optimise import Watching, captioned, refine
from lorasynth.synthesizer import Synthesizer


@pytest.fixture(scope="module")
def drawn() -> Subject:
    source = subjects_in("avatars:1,split=validation,images=2,seed=3", PORTRAIT, 64)
    return source.load(source.ids[0])


def test_captions_name_what_the_photo_shows_and_leave_own_captions(drawn: Subject) -> None:
    base = BaseModel.load("bundle/base")
    adapter = Synthesizer.from_pretrained("bundle/synthesizer")(drawn.images[0].numpy())
    bare = replace(drawn, captions=[PORTRAIT, "a portrait of sks on a hill"])
    said, own = captioned(base, bare, stack([adapter.factors])).captions
    *_, background, clothes = drawn.captions[0].split(", ")
    assert background in said
    assert said.startswith(PORTRAIT)
    assert clothes.split()[0] in said
    assert own == "a portrait of sks on a hill"


def test_similarity_is_a_cosine_with_the_shipped_encoder_of_two_parts(drawn: Subject) -> None:
    base, synthesizer = (
        BaseModel.load("bundle/base"),
        Synthesizer.from_pretrained("bundle/synthesizer"),
    )
    first = stack([synthesizer(drawn.images[0].numpy()).factors])
    recipe = replace(PRESETS["refine"], steps=1)
    made = refine(base, recipe, drawn, first, Watching(synthesizer.encoder))
    assert made.before is not None
    assert made.after is not None
    assert 0.3 < made.before <= made.after <= 1
