"""The embedded domain: portraits drawn by DiceBear's `avataaars` style, at any size.

An `Identity` is what makes a subject: hair or hat, facial hair, glasses, their colours and that of
the skin, and the size of the face.  A `Scene` is all that varies between two images of one
subject: expression, clothes, background, pose.  Colours of an identity are continuous; its discrete
attributes form the `combination` by which subjects are split, so that no combination of a held-out
subject is ever seen in training.

`hijab` and `graphicShirt` are left out: the first hides the clothes that captions name, the second
prints words.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from lorasynth.avatars import captions
from lorasynth.avatars.vocabulary import (
    CLOTHES,
    COLOURS,
    EYEBROWS,
    EYES,
    FACIAL_HAIR,
    GLASSES,
    GLASSES_COLOURS,
    HAIR_ANCHORS,
    MOUTHS,
    NONE,
    SKIN_ANCHORS,
    TOPS,
)
from lorasynth.core import splits
from lorasynth.core.config import from_dict
from lorasynth.core.errors import ConfigError, installing
from lorasynth.core.randomness import numpy_stream
from lorasynth.images.contract import Subject

Colour = tuple[int, int, int]
Split = Literal["train", "validation", "test"]

#: Shares of the discrete combinations in each split.  Never change them: everything shipped was
#: trained under this split.
SPLIT_SHARES: Mapping[str, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}
_SPLIT_SEED = 20261123

_COLOURS_OF_IDENTITY = ("skin", "hair", "facial_hair_colour", "hat", "glasses_colour")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What two images of one subject share."""

    top: str
    facial_hair: str
    glasses: str
    skin: Colour
    hair: Colour
    facial_hair_colour: Colour
    hat: Colour
    glasses_colour: Colour
    face_scale: float

    @property
    def combination(self) -> str:
        """The discrete attributes as one key, by which subjects are split."""
        return f"{self.top}/{self.facial_hair}/{self.glasses}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What varies between two images of one subject."""

    mouth: str
    eyes: str
    eyebrows: str
    clothes: str
    clothes_colour: str
    background: str
    jitter: tuple[Colour, Colour]  # added to the named colours of clothes and background
    rotation: float
    shift: tuple[float, float]


def split_of(combination: str) -> Split:
    """The split that a combination of discrete attributes belongs to, fixed for all time."""
    return cast("Split", splits.split_of(combination, _SPLIT_SEED, SPLIT_SHARES))


@cache
def combinations(split: Split) -> tuple[tuple[str, str, str], ...]:
    """All (top, facial hair, glasses) of one split."""
    everything = ((t, f, g) for t in TOPS for f in (NONE, *FACIAL_HAIR) for g in (NONE, *GLASSES))
    return tuple(c for c in everything if split_of("/".join(c)) == split)


def _blend(rng: np.random.Generator, anchors: Sequence[str]) -> Colour:
    first, second = (np.array(_rgb(anchors[i])) for i in rng.choice(len(anchors), 2, replace=False))
    mixed = first + rng.beta(0.5, 0.5) * (second - first) + rng.normal(0, 6, 3)
    r, g, b = np.clip(mixed.round(), 0, 255).astype(int).tolist()
    return r, g, b


def _rgb(hex_colour: str) -> Colour:
    value = int(hex_colour.lstrip("#"), 16)
    return value >> 16, value >> 8 & 255, value & 255


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def sample_identity(rng: np.random.Generator, split: Split) -> Identity:
    """Draw an identity of a split; half of all have facial hair, half have glasses."""
    allowed = combinations(split)
    weights = np.array(
        [(1 if f == NONE else 0.2) * (1 if g == NONE else 1 / 7) for _, f, g in allowed]
    )
    top, facial_hair, glasses = allowed[rng.choice(len(allowed), p=weights / weights.sum())]
    return Identity(
        top=top,
        facial_hair=facial_hair,
        glasses=glasses,
        skin=_blend(rng, SKIN_ANCHORS),
        hair=_blend(rng, HAIR_ANCHORS),
        facial_hair_colour=_blend(rng, HAIR_ANCHORS),
        hat=_blend(rng, list(COLOURS.values())),
        glasses_colour=_rgb(GLASSES_COLOURS[rng.integers(len(GLASSES_COLOURS))]),
        face_scale=float(rng.uniform(0.95, 1.2)),
    )


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; clothes and background never have the same colour name."""
    colours = list(COLOURS)
    clothes_colour, background = (colours[i] for i in rng.choice(len(colours), 2, replace=False))
    jitter = rng.integers(-8, 9, (2, 3)).tolist()
    return Scene(
        mouth=str(rng.choice(list(MOUTHS))),
        eyes=str(rng.choice(list(EYES))),
        eyebrows=str(rng.choice(EYEBROWS)),
        clothes=str(rng.choice(list(CLOTHES))),
        clothes_colour=clothes_colour,
        background=background,
        jitter=(tuple(jitter[0]), tuple(jitter[1])),
        rotation=float(rng.uniform(-10, 10)),
        shift=(float(rng.uniform(-5, 5)), float(rng.uniform(0, 5))),
    )


@cache
def _style(name: str) -> Any:
    from dicebear import Style

    definition = files("dicebear_styles").joinpath(f"{name}.json").read_text(encoding="utf-8")
    return Style(json.loads(definition))


def render_style(name: str, options: dict[str, Any], size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw any DiceBear style as an RGB image of `size` pixels.

    Raises:
        ConfigError: the extra `avatars` is not installed.
    """
    try:
        from dicebear import Avatar
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ConfigError(
            f"drawing avatars needs the extra 'avatars': {installing('avatars')}"
        ) from error
    svg = Avatar(_style(name), options).to_string()
    png = svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def draw(identity: Identity, scene: Scene, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw one portrait.

    Raises:
        ConfigError: the extra `avatars` is not installed.
    """
    clothes, background = (
        _hex(np.clip(np.add(_rgb(COLOURS[name]), jitter), 0, 255).tolist())
        for name, jitter in zip((scene.clothes_colour, scene.background), scene.jitter, strict=True)
    )
    options = {
        "seed": "",
        "topVariant": identity.top,
        "facialHairVariant": identity.facial_hair if identity.facial_hair != NONE else "beardLight",
        "facialHairProbability": 0 if identity.facial_hair == NONE else 100,
        "accessoriesVariant": identity.glasses if identity.glasses != NONE else "round",
        "accessoriesProbability": 0 if identity.glasses == NONE else 100,
        "skinColor": [_hex(identity.skin)],
        "hairColor": [_hex(identity.hair)],
        "facialHairColor": [_hex(identity.facial_hair_colour)],
        "hatColor": [_hex(identity.hat)],
        "accessoriesColor": [_hex(identity.glasses_colour)],
        "scale": identity.face_scale,
        "mouthVariant": scene.mouth,
        "eyesVariant": scene.eyes,
        "eyebrowsVariant": scene.eyebrows,
        "clothesVariant": scene.clothes,
        "clothesColor": [clothes],
        "backgroundColor": [background],
        "rotate": scene.rotation,
        "translateX": scene.shift[0],
        "translateY": scene.shift[1],
    }
    return render_style("avataaars", options, size)


@dataclass(frozen=True, kw_only=True)
class AvatarSubjects:
    """A source of `count` avatar subjects of one split, `images` each.

    Subject number i is the same whatever `count` and `images` are, and so is its image number
    j.  Different `series` never share a subject.  Neighbours in groups of `siblings` have the same
    colours, and every second of them is the twin of the one before, with another size of the face:
    who learns to tell them apart must look at shapes and sizes.
    """

    split: Split
    count: int
    images: int = 10
    size: int = 64
    seed: int = 0
    series: str = "library"
    first: int = 0
    siblings: int = 1

    @property
    def ids(self) -> list[str]:
        """Names such as `avatar-train-library-0-000017`."""
        prefix = f"avatar-{self.split}-{self.series}-{self.seed}"
        return [f"{prefix}-{i:06d}" for i in range(self.first, self.first + self.count)]

    def identity(self, subject_id: str) -> Identity:
        """The identity behind a name."""
        own = sample_identity(numpy_stream(self.seed, subject_id, "identity"), self.split)
        stem, number = subject_id.rsplit("-", 1)
        eldest = int(number) - int(number) % self.siblings
        nth = int(number) - eldest
        if nth == 0:
            return own
        if nth % 2:
            twin = self.identity(f"{stem}-{int(number) - 1:06d}")
            return replace(twin, face_scale=own.face_scale)
        return with_colours_of(own, self.identity(f"{stem}-{eldest:06d}"))

    def scenes(self, subject_id: str, purpose: str = "training") -> list[Scene]:
        """The scenes of a subject's images; another purpose gives other images of it."""
        streams = (numpy_stream(self.seed, subject_id, purpose, j) for j in range(self.images))
        return [sample_scene(stream) for stream in streams]

    def draw(self, subject_id: str, purpose: str = "training") -> UInt8[Tensor, "k h w 3"]:
        """Draw a subject's images."""
        identity = self.identity(subject_id)
        drawn = [draw(identity, scene, self.size) for scene in self.scenes(subject_id, purpose)]
        return torch.from_numpy(np.stack(drawn))

    def load(self, subject_id: str, purpose: str = "training") -> Subject:
        """Draw a subject and caption its scenes (identity attributes are never named)."""
        scenes = self.scenes(subject_id, purpose)
        return Subject(
            id=subject_id,
            photos=self.draw(subject_id, purpose),
            captions=[captions.prompt(scene) for scene in scenes],
            attributes=attributes(self.identity(subject_id)),
        )


def named_subjects(argument: str, size: int) -> AvatarSubjects:
    """The subjects that `avatars:200,split=validation,images=4` asks for, after the colon.

    Raises:
        ConfigError: it asks for something that avatars do not have.
    """
    count, *settings = argument.split(",")
    options: dict[str, Any] = {"split": "train", "count": count, "size": size}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(
                "avatars are asked for by their count and settings, as "
                f"avatars:200,split=validation, but got {setting!r}"
            )
        options[name.strip()] = value.strip()
    return from_dict(AvatarSubjects, options)


def attributes(identity: Identity) -> dict[str, str | float]:
    """An identity as a flat table row: colours as #rrggbb."""
    row = asdict(identity)
    return {k: _hex(v) if isinstance(v, tuple) else v for k, v in row.items()}


def with_colours_of(identity: Identity, other: Identity) -> Identity:
    """`identity` in the colours of `other` (to test what an encoder knows beyond colour)."""
    colours: dict[str, Any] = {name: getattr(other, name) for name in _COLOURS_OF_IDENTITY}
    return replace(identity, **colours)


assert set(get_args(Split)) == set(SPLIT_SHARES)
