"""Who a subject is, what varies between its images, and which subjects are held out."""

import hashlib
import sys
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from lorasynth.avatars import captions
from lorasynth.avatars.drawing import (
    SPLIT_SHARES,
    AvatarSubjects,
    Identity,
    Scene,
    Split,
    attributes,
    combinations,
    draw,
    sample_identity,
    sample_scene,
    split_of,
    with_colours_of,
)
from lorasynth.avatars.vocabulary import FACIAL_HAIR, GLASSES, HATS, NONE, TOPS
from lorasynth.core.errors import ConfigError
from lorasynth.core.randomness import numpy_stream

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SUBJECTS = AvatarSubjects(split="test", count=4, images=3, size=16)


# Splits


def test_the_split_is_the_one_that_everything_shipped_was_trained_under() -> None:
    """Never change these: a combination moved into training makes every result dishonest."""
    assert split_of("bob/none/none") == "train"
    assert split_of("fro/beardLight/round") == "train"
    assert split_of("winterHat1/beardMedium/kurt") == "test"
    assert split_of("theCaesar/none/none") == "test"
    listed = (f"{'/'.join(c)}:{split};" for split in SPLITS for c in combinations(split))
    assert hashlib.sha256("".join(listed).encode()).hexdigest()[:16] == "06a140ca41f0835c"


def test_every_combination_is_in_one_split() -> None:
    counts = Counter(combination for split in SPLITS for combination in combinations(split))
    assert set(counts.values()) == {1}
    assert len(counts) == len(TOPS) * (1 + len(FACIAL_HAIR)) * (1 + len(GLASSES))
    for split, share in SPLIT_SHARES.items():
        assert len(combinations(split)) == pytest.approx(share * len(counts), rel=0.15)


@pytest.mark.parametrize("split", SPLITS)
def test_subjects_have_combinations_of_their_split(split: Split) -> None:
    subjects = AvatarSubjects(split=split, count=300, images=1, series="any")
    found = {subjects.identity(name).combination for name in subjects.ids}
    assert len(found) > 50
    assert {split_of(combination) for combination in found} == {split}


def test_every_value_of_an_attribute_is_in_training_and_held_out() -> None:
    for split in ("train", "test"):
        for values in zip(*combinations(split), strict=True):
            assert set(values) in ({*TOPS}, {NONE, *FACIAL_HAIR}, {NONE, *GLASSES})


def test_half_have_facial_hair_and_half_have_glasses() -> None:
    drawn = [sample_identity(numpy_stream(0, i), "train") for i in range(2000)]
    assert np.mean([i.facial_hair != NONE for i in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([i.glasses != NONE for i in drawn]) == pytest.approx(0.5, abs=0.05)
    assert {i.top for i in drawn} == set(TOPS)


# Subjects


def test_the_streams_are_those_of_everything_shipped() -> None:
    identity = SUBJECTS.identity("avatar-test-library-0-000001")
    assert identity.combination == "straightAndStrand/none/prescription01"
    assert attributes(identity)["skin"] == "#e9b784"
    scene = SUBJECTS.scenes("avatar-test-library-0-000001")[1]
    assert captions.prompt(scene) == (
        "a portrait of sks, gritting teeth, looking aside, gray background, purple overalls"
    )


def test_a_subject_depends_on_neither_count_nor_order() -> None:
    more = replace(SUBJECTS, count=9, images=5)
    later = replace(SUBJECTS, first=2, count=2)
    assert more.ids[:4] == SUBJECTS.ids
    assert later.ids == SUBJECTS.ids[2:]
    for name in reversed(later.ids):
        assert more.identity(name) == later.identity(name) == SUBJECTS.identity(name)
        assert more.scenes(name)[:3] == later.scenes(name) == SUBJECTS.scenes(name)
    alone, among = later.load(later.ids[1]), more.load(later.ids[1])
    assert alone.images.equal(among.images[:3])
    assert alone.captions == among.captions[:3]
    assert alone.attributes == among.attributes


def test_siblings_share_all_colours_and_every_second_is_a_twin() -> None:
    alone = AvatarSubjects(split="train", count=8, images=1)
    grouped = replace(alone, siblings=4)
    colours = ("skin", "hair", "facial_hair_colour", "hat", "glasses_colour")
    identities = [grouped.identity(name) for name in grouped.ids]
    palettes = [tuple(getattr(identity, name) for name in colours) for identity in identities]
    assert palettes[:4] == [palettes[0]] * 4
    assert palettes[4:] == [palettes[4]] * 4
    assert palettes[0] != palettes[4]
    for name, identity in zip(grouped.ids, identities, strict=True):
        assert identity.face_scale == alone.identity(name).face_scale
    for first, twin, name in zip(identities[::2], identities[1::2], grouped.ids[::2], strict=True):
        assert first.combination == alone.identity(name).combination
        assert twin == replace(first, face_scale=twin.face_scale) != first
    assert identities[0] == alone.identity(grouped.ids[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"series": "other"}, {"split": "train"}])
def test_other_series_share_no_subject(change: dict[str, Any]) -> None:
    other = replace(SUBJECTS, **change)
    assert not set(other.ids) & set(SUBJECTS.ids)
    identities = [source.identity(name) for source in (SUBJECTS, other) for name in source.ids]
    assert len({str(identity) for identity in identities}) == 8


def test_another_purpose_gives_other_images_of_the_same_subject() -> None:
    name = SUBJECTS.ids[0]
    training, judging = (SUBJECTS.load(name, purpose) for purpose in ("training", "judging"))
    assert training.attributes == judging.attributes
    scenes = [*SUBJECTS.scenes(name), *SUBJECTS.scenes(name, "judging")]
    assert len({str(scene) for scene in scenes}) == 6
    assert not training.images.equal(judging.images)
    assert training.captions != judging.captions


def test_the_captions_of_a_subject_are_those_of_its_scenes() -> None:
    subject = SUBJECTS.load(SUBJECTS.ids[0])
    scenes = SUBJECTS.scenes(SUBJECTS.ids[0])
    assert subject.captions == [captions.prompt(scene) for scene in scenes]
    identity = SUBJECTS.identity(SUBJECTS.ids[0])
    assert np.array_equal(subject.images[1].numpy(), draw(identity, scenes[1], 16))


# Drawing


IDENTITY = Identity(
    top="bob",
    facial_hair="beardMedium",
    glasses="round",
    skin=(208, 139, 91),
    hair=(44, 27, 24),
    facial_hair_colour=(165, 87, 40),
    hat=(213, 49, 47),
    glasses_colour=(38, 46, 51),
    face_scale=1.0,
)
SCENE = Scene(
    mouth="sad",
    eyes="default",
    eyebrows="default",
    clothes="overall",
    clothes_colour="blue",
    background="yellow",
    jitter=((0, 0, 0), (0, 0, 0)),
    rotation=0.0,
    shift=(0.0, 0.0),
)


def test_a_image_is_a_function_of_identity_and_scene() -> None:
    image = draw(IDENTITY, SCENE, 32)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    draw(replace(IDENTITY, top="fro"), SCENE, 32)
    assert np.array_equal(draw(IDENTITY, SCENE, 32), image)


#: Another value for each field; hats and absent hair have a test of their own.
CHANGES: dict[str, Any] = {
    "top": "fro",
    "facial_hair": NONE,
    "glasses": NONE,
    "skin": (63, 42, 32),
    "hair": (236, 220, 191),
    "facial_hair_colour": (236, 220, 191),
    "glasses_colour": (230, 230, 230),
    "face_scale": 1.2,
    "mouth": "smile",
    "eyes": "wink",
    "eyebrows": "angry",
    "clothes": "hoodie",
    "clothes_colour": "green",
    "background": "pink",
    "jitter": ((8, 8, 8), (-8, -8, -8)),
    "rotation": 9.0,
    "shift": (5.0, 5.0),
}


def test_every_attribute_shows() -> None:
    names = {field.name for kind in (Identity, Scene) for field in fields(kind)}
    assert names - {"hat"} == set(CHANGES)
    image = draw(IDENTITY, SCENE, 64)
    for name, value in CHANGES.items():
        if hasattr(IDENTITY, name):
            changed = draw(replace(IDENTITY, **{name: value}), SCENE, 64)
        else:
            changed = draw(IDENTITY, replace(SCENE, **{name: value}), 64)
        assert not np.array_equal(changed, image), name


@pytest.mark.parametrize("top", TOPS)
def test_hats_have_the_hats_colour_and_hair_the_hairs(top: str) -> None:
    plain = replace(IDENTITY, top=top)
    image = draw(plain, SCENE, 64)
    other_hat = draw(replace(plain, hat=(20, 200, 90)), SCENE, 64)
    other_hair = draw(replace(plain, hair=(236, 220, 191)), SCENE, 64)
    assert np.array_equal(other_hat, image) == (top not in HATS)
    if top not in (*HATS, "sides"):
        assert not np.array_equal(other_hair, image)


def test_a_named_background_is_that_colour() -> None:
    for name, channel in (("red", 0), ("blue", 2), ("green", 1)):
        corner = draw(IDENTITY, replace(SCENE, background=name), 64)[0, 0]
        assert corner.argmax() == channel


def test_colours_can_be_borrowed() -> None:
    other = sample_identity(numpy_stream(0, "other"), "test")
    borrowed = with_colours_of(IDENTITY, other)
    assert borrowed.combination == IDENTITY.combination
    assert borrowed.face_scale == IDENTITY.face_scale
    for name, value in attributes(borrowed).items():
        assert value == attributes(other if str(value).startswith("#") else IDENTITY)[name]


def test_clothes_and_background_never_have_one_colour() -> None:
    scenes = [sample_scene(numpy_stream(0, i)) for i in range(500)]
    assert all(scene.clothes_colour != scene.background for scene in scenes)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dicebear", None)
    with pytest.raises(ConfigError, match=r"pip install '.\[avatars\]'"):
        draw(IDENTITY, SCENE, 16)
