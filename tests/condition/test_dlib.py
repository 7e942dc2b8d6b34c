"""dlib's detector, landmarks and network on real photos."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lorasynth.condition import FaceEncoder, load_encoder, subject_condition
from lorasynth.condition.faces.dlib import DlibDetector
from lorasynth.core.errors import ImageError
from lorasynth.images import to_image

from .photos import hopper, six_people

dlib = pytest.importorskip("dlib", reason="needs lorasynth[face]")

#: Where the six people's faces are: left, top, right, bottom.
PLACES = {
    "left": (20, 230, 240, 450),
    "middle": (440, 210, 640, 410),
    "right": (1080, 220, 1280, 440),
}


@cache
def encoder() -> FaceEncoder:
    made = load_encoder("dlib")
    assert isinstance(made, FaceEncoder)
    return made


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


def portrait() -> Tensor:
    """Grace Hopper's head and shoulders, a face of 50 pixels."""
    return pixels(to_image(hopper()[40:440, 70:470]).resize((100, 100), Image.Resampling.LANCZOS))


def person(place: str) -> Tensor:
    left, top, right, bottom = PLACES[place]
    return six_people()[top:bottom, left:right]


def embedded(photo: Tensor) -> Tensor:
    return subject_condition(encoder(), [photo], ["photo"])


def test_the_points_are_eyes_nose_and_mouth() -> None:
    [face] = encoder().faces(portrait())
    eyes, nose, mouth = face.points[:2], face.points[2], face.points[3:]
    assert eyes[0, 0] < nose[0] < eyes[1, 0]
    assert mouth[0, 0] < nose[0] < mouth[1, 0]
    assert eyes[:, 1].max() < nose[1] < mouth[:, 1].min()
    np.testing.assert_allclose(face.points.mean(axis=0), [49, 49], atol=6)
    assert face.score > 0.6


def test_the_square_is_what_dlib_itself_would_cut() -> None:
    photo = hopper()[40:440, 70:470]
    detector, image = DlibDetector(), np.ascontiguousarray(photo.numpy())
    box = dlib.get_frontal_face_detector()(image, 1)[0]
    theirs = dlib.get_face_chip(image, detector._landmarks(image, box), 150, 0.25)
    ours = encoder().aligned(photo).numpy()
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.95


def turned(degrees: float) -> Tensor:
    return pixels(to_image(portrait()).rotate(degrees, Image.Resampling.BICUBIC, expand=True))


def tight() -> Tensor:
    [face] = encoder().faces(portrait())
    left, top, right, bottom = (round(side) for side in face.box)
    return portrait()[top:bottom, left:right]


def small() -> Tensor:
    return pixels(to_image(portrait()).resize((60, 60), Image.Resampling.LANCZOS))


VARIANTS = {
    "turned by 20": lambda: turned(20),
    "on its side": lambda: turned(90),
    "upside down": lambda: turned(180),
    "cut to the face": tight,
    "a face of 30 pixels": small,
    "mirrored": lambda: portrait().flip(1),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_face_is_itself_in_other_photos(variant: str) -> None:
    assert embedded(portrait()) @ embedded(VARIANTS[variant]()) > 0.7


def test_strangers_are_far_apart() -> None:
    people = torch.stack([embedded(person(place)) for place in PLACES] + [embedded(portrait())])
    cosines = (people @ people.T)[~torch.eye(4, dtype=torch.bool)]
    assert cosines.max() < 0.45
    assert abs(cosines.mean()) < 0.2


def test_people_beside_each_other_are_counted_from_the_left() -> None:
    photo = six_people()
    faces = encoder().faces(photo)
    assert len(faces) >= 4
    middles = [face.points[2, 0] for face in faces]
    assert middles == sorted(middles)
    first = subject_condition(encoder(), [photo], ["photo"], face=1)
    assert first @ embedded(person("left")) > 0.8
    with pytest.raises(ImageError, match=rf"shows {len(faces)}"):
        subject_condition(encoder(), [photo], ["photo"], face=7)


def test_medals_and_flags_are_no_faces() -> None:
    assert len(encoder().faces(hopper())) == 1
    with pytest.raises(ImageError, match="finds none in uniform"):
        subject_condition(encoder(), [hopper()[400:600, 60:400]], ["uniform"])
