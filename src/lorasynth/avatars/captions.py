"""Captions of avatars: what varies is always sayable; who it is, only by its attributes.

A training caption names identity attributes too, each with drop-out, as Stable Diffusion's captions
do; the base model so learns the words, and an adapter for `sks` needs to learn only the subject.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorasynth.avatars.vocabulary import (
    CLOTHES,
    COLOURS,
    EYES,
    FACIAL_HAIR,
    GLASSES,
    HAIR_WORDS,
    HATS,
    MOUTHS,
    NONE,
    SKIN_WORDS,
    TOPS,
)
from lorasynth.images.contract import TRIGGER

if TYPE_CHECKING:
    from lorasynth.avatars.drawing import Identity, Scene

#: The rare word that stands for the subject.


def nearest_word(colour: Sequence[int], words: Mapping[str, str]) -> str:
    """The word whose anchor is nearest to a colour (redmean distance)."""
    anchors = np.array([[int(v[i : i + 2], 16) for i in (1, 3, 5)] for v in words.values()], float)
    difference = anchors - np.asarray(colour, float)
    mean_red = (anchors[:, 0] + colour[0]) / 2
    weights = np.stack([2 + mean_red / 256, np.full_like(mean_red, 4), 3 - mean_red / 256], axis=1)
    return list(words)[int((weights * difference**2).sum(axis=1).argmin())]


def identity_phrases(identity: "Identity") -> list[str]:
    """What can be said of a subject: skin, hair or hat, facial hair, glasses."""
    hat = identity.top in HATS
    top_colour = (
        nearest_word(identity.hat, COLOURS) if hat else nearest_word(identity.hair, HAIR_WORDS)
    )
    phrases = [
        f"{nearest_word(identity.skin, SKIN_WORDS)} skin",
        f"{top_colour} {TOPS[identity.top]}",
    ]
    if identity.facial_hair != NONE:
        colour = nearest_word(identity.facial_hair_colour, HAIR_WORDS)
        phrases.append(f"{colour} {FACIAL_HAIR[identity.facial_hair]}")
    if identity.glasses != NONE:
        phrases.append(GLASSES[identity.glasses])
    return phrases


def scene_phrases(scene: "Scene") -> list[str]:
    """What varies between images: expression, background, clothes."""
    return [
        MOUTHS[scene.mouth],
        EYES[scene.eyes],
        f"{scene.background} background",
        f"{scene.clothes_colour} {CLOTHES[scene.clothes]}",
    ]


def join(phrases: Sequence[str], trigger: str = TRIGGER) -> str:
    """One caption: `a portrait of sks, smiling, blue background`."""
    return ", ".join([f"a portrait of {trigger}", *phrases])


def prompt(scene: "Scene") -> str:
    """The caption of a scene for adapters: it names no identity attribute."""
    return join(scene_phrases(scene))


def described(identity: "Identity", scene: "Scene") -> str:
    """The caption of a scene with all that words can say of the subject."""
    return join([*identity_phrases(identity), *scene_phrases(scene)])


def training_caption(
    identity: Sequence[str], scene: Sequence[str], rng: np.random.Generator
) -> str:
    """A caption for training the base model, of an image's phrases.

    A sixth of captions names no identity attribute.  In the others, as of the scene, each phrase is
    dropped with probability 0.1.
    """
    said = [*identity, *scene] if rng.random() > 1 / 6 else scene
    return join([phrase for phrase in said if rng.random() > 0.1])


def corpus() -> list[str]:
    """Every word that a caption can hold, for the tokenizer."""
    tables = (TOPS, FACIAL_HAIR, GLASSES, MOUTHS, EYES, CLOTHES)
    phrases = [phrase for table in tables for phrase in table.values()]
    colours = (*COLOURS, *HAIR_WORDS, *SKIN_WORDS)
    return [join(["x"]), *phrases, *(f"{colour} background skin" for colour in colours)]
