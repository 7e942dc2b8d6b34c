"""Captions name what varies; who it is only where the base model learns the words."""

import re
from dataclasses import replace
from itertools import chain

import pytest

from lorasynth.avatars import captions
from lorasynth.avatars.drawing import Identity, Scene, sample_identity, sample_scene
from lorasynth.avatars.vocabulary import (
    CLOTHES,
    COLOURS,
    EYES,
    FACIAL_HAIR,
    GLASSES,
    HAIR_WORDS,
    MOUTHS,
    NONE,
    SKIN_WORDS,
    TOPS,
)
from lorasynth.core.randomness import numpy_stream

IDENTITY: Identity = replace(
    sample_identity(numpy_stream(0, "captions"), "train"),
    top="bob",
    hair=(214, 179, 112),
    skin=(63, 42, 32),
    facial_hair="beardMedium",
    facial_hair_colour=(44, 27, 24),
    glasses="round",
)
SCENE: Scene = replace(
    sample_scene(numpy_stream(0, "captions")),
    mouth="smile",
    eyes="wink",
    clothes="hoodie",
    clothes_colour="red",
    background="blue",
)


def words(text: str) -> set[str]:
    return set(re.split(r"[ ,]+", text))


def every_pair() -> list[tuple[Identity, Scene]]:
    """Identities and scenes that between them have every value of every attribute."""
    drawn = [numpy_stream(0, "pairs", i) for i in range(1500)]
    return [(sample_identity(rng, "train"), sample_scene(rng)) for rng in drawn]


def test_what_is_said() -> None:
    scene = "smiling, winking, blue background, red hoodie"
    identity = "dark skin, blond bob hair, black medium beard, round glasses"
    assert captions.prompt(SCENE) == f"a portrait of sks, {scene}"
    assert captions.described(IDENTITY, SCENE) == f"a portrait of sks, {identity}, {scene}"
    bare = replace(IDENTITY, facial_hair=NONE, glasses=NONE, top="turban", hat=(213, 49, 47))
    assert captions.identity_phrases(bare) == ["dark skin", "red turban"]
    assert captions.join([], trigger="zwx") == "a portrait of zwx"


def test_prompts_never_name_an_attribute_of_identity() -> None:
    tables = (TOPS, FACIAL_HAIR, GLASSES)
    identity_words = {"skin", *chain(*(words(p) for table in tables for p in table.values()))}
    identity_words |= {*HAIR_WORDS, *SKIN_WORDS} - {*COLOURS}
    said = set[str]()
    for _, scene in every_pair():
        said |= words(captions.prompt(scene))
    assert not said & identity_words
    for table in (MOUTHS, EYES, CLOTHES):
        assert all(words(phrase) <= said for phrase in table.values())
    assert set(COLOURS) <= said


def test_training_captions_drop_phrases_at_the_stated_rates() -> None:
    n = 10_000
    rng = numpy_stream(0, "rates")
    identity, scene = captions.identity_phrases(IDENTITY), captions.scene_phrases(SCENE)
    drawn = [captions.training_caption(identity, scene, rng).split(", ") for _ in range(n)]
    assert len(identity) == len(scene) == 4

    def share(count: int) -> float:
        return count / n

    near = {"abs": 4 * 0.5 / n**0.5}  # four standard errors of a share, at most
    silent = [not set(caption) & set(identity) for caption in drawn]
    assert share(sum(silent)) == pytest.approx(1 / 6 + 5 / 6 * 0.1**4, **near)
    for phrase in identity:
        assert share(sum(phrase in c for c in drawn)) == pytest.approx(5 / 6 * 0.9, **near)
    named = sum(phrase in c for c in drawn for phrase in identity) / 4
    assert share(named) == pytest.approx(5 / 6 * 0.9, abs=0.015)
    for phrase in scene:
        assert share(sum(phrase in c for c in drawn)) == pytest.approx(0.9, **near)
    both = sum(identity[0] in c and identity[1] in c for c in drawn)
    assert share(both) == pytest.approx(5 / 6 * 0.9**2, **near)
    whole = ["a portrait of sks", *identity, *scene]
    assert all(c == [phrase for phrase in whole if phrase in c] for c in drawn)


def test_the_corpus_has_every_word_that_a_caption_can_hold() -> None:
    known = words(" ".join(captions.corpus())) | {captions.TRIGGER}
    for identity, scene in every_pair():
        assert words(captions.described(identity, scene)) <= known
    colours = {*COLOURS, *HAIR_WORDS, *SKIN_WORDS}
    tables = (TOPS, FACIAL_HAIR, GLASSES, MOUTHS, EYES, CLOTHES)
    assert colours | set(chain(*(words(p) for t in tables for p in t.values()))) <= known


@pytest.mark.parametrize("table", [COLOURS, HAIR_WORDS, SKIN_WORDS])
def test_an_anchor_has_its_own_name(table: dict[str, str]) -> None:
    for word, anchor in table.items():
        colour = [int(anchor[i : i + 2], 16) for i in (1, 3, 5)]
        assert captions.nearest_word(colour, table) == word
        nudged = [min(max(c + d, 0), 255) for c, d in zip(colour, (3, -3, 3), strict=True)]
        assert captions.nearest_word(nudged, table) == word
