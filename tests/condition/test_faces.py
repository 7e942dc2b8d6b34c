"""Faces found, chosen and laid straight, whatever finds them: here, drawn ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lorasynth.condition import (
    FaceConfig,
    FaceEncoder,
    framed_subject,
    seen_in,
    sphere_mean,
    subject_condition,
    subject_conditions,
)
from lorasynth.condition.faces.alignment import ARCFACE, DLIB, align, inverse, moved, similarity
from lorasynth.condition.faces.views import ROUNDS, View, find_faces
from lorasynth.core.errors import BundleError, ConfigError, ImageError
from lorasynth.core.randomness import numpy_stream
from lorasynth.images import Subject

from .drawn import DOTS, DrawnDetector, canvas, draw_face, pixels
from .onnx_files import write_arcface

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FaceEncoder:
    pytest.importorskip("onnxruntime", reason="needs lorasynth[face]")
    path = write_arcface(tmp_path_factory.mktemp("arcface") / "arcface.onnx")
    return FaceEncoder(FaceConfig(name="drawn", detector="drawn", network=f"onnx:{path}"))


def photo(size: float = 60.0, turn: float = 0.0, side: int = 120) -> Tensor:
    """One face, not in the middle."""
    image = canvas(side, side)
    draw_face(image, side * 0.3, side * 0.25, size, turn)
    return pixels(image)


# Alignment


def test_a_similarity_finds_the_turn_scale_and_shift_that_points_were_moved_by() -> None:
    points = numpy_stream(0, "points").normal(size=(5, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) * 3
    matrix = np.column_stack([turn, [7.0, -2.0]])
    np.testing.assert_allclose(similarity(points, moved(points, matrix)), matrix, atol=1e-9)
    np.testing.assert_allclose(moved(moved(points, matrix), inverse(matrix)), points, atol=1e-9)


def test_a_similarity_never_mirrors() -> None:
    points = numpy_stream(1, "points").normal(size=(5, 2))
    found = similarity(points, points * [-1, 1])
    assert np.linalg.det(found[:, :2]) > 0
    error = moved(points, found) - points * [-1, 1]
    for angle in np.linspace(0, 6, 50):  # no other turn and scale is nearer
        cos, sin = np.cos(angle), np.sin(angle)
        centred = (points - points.mean(0)) @ np.array([[cos, sin], [-sin, cos]])
        target = (points - points.mean(0)) * [-1, 1]
        scale = max((centred * target).sum() / np.square(centred).sum(), 0)
        assert np.square(error).sum() <= np.square(scale * centred - target).sum() + 1e-9


def test_the_templates_are_those_of_the_networks() -> None:
    np.testing.assert_allclose(ARCFACE[2] * 112, [56.0252, 71.7366])
    np.testing.assert_allclose(DLIB[0] * 150, [47.55, 46.6], atol=0.05)
    for template in (ARCFACE, DLIB):
        assert template.min() > 0.25
        assert template.max() < 0.85


@pytest.mark.parametrize("turn", [0.0, 30.0, 90.0, 170.0])
@pytest.mark.parametrize("size", [60.0, 150.0, 900.0])
def test_an_aligned_face_lies_on_the_template(size: float, turn: float) -> None:
    image = canvas(round(size * 1.6), round(size * 1.5))
    points = draw_face(image, size * 0.3, size * 0.2, size, turn)
    square = align(image, points, ARCFACE, 112)
    upright = canvas(112, 112)
    draw_face(upright, 0, 0, 112)
    difference = np.abs(np.asarray(square, float) - np.asarray(upright, float))
    assert difference.mean() < 6


def test_fine_patterns_vanish_when_a_face_shrinks() -> None:
    stripes = np.zeros((1200, 1200, 3), np.uint8)
    stripes[:, ::2] = 255
    square = np.asarray(align(Image.fromarray(stripes), DOTS * 1190, ARCFACE, 112), float)
    assert square[8:-8, 8:-8].std() < 12


# Looking again


@pytest.mark.parametrize("turn", [-130.0, -90.0, -40.0, 0.0, 25.0, 90.0, 180.0])
@pytest.mark.parametrize("view", [View(side=90), View(side=300, turn=30.0, border=0.5)])
def test_a_view_knows_where_its_pixels_come_from(view: View, turn: float) -> None:
    turned = View(side=view.side, turn=view.turn + turn, border=view.border)
    image = canvas(200, 160)
    points = draw_face(image, 60, 30, 80, turned.turn)  # upright in the view
    seen, back = turned.of(image)
    [face] = DrawnDetector()(np.asarray(seen))
    np.testing.assert_allclose(moved(face.points, back), points, atol=1.5)


@pytest.mark.parametrize("turn", [0.0, 30.0, 45.0, 75.0, 90.0, 135.0, 180.0, 230.0, 270.0, 315.0])
def test_a_turned_face_is_found_where_it_is(turn: float) -> None:
    image = canvas(150, 110)
    points = draw_face(image, 75, 20, 60, turn)
    [face] = find_faces(DrawnDetector(), image)
    np.testing.assert_allclose(face.points, points, atol=1.5)
    assert face.box[0] < points[:, 0].min()
    assert face.box[3] > points[:, 1].max() - 5


def test_a_face_that_fills_the_frame_is_padded() -> None:
    image = canvas(100, 100)
    points = draw_face(image, -25, -38, 150)
    detector = DrawnDetector()
    assert find_faces(detector, image, ROUNDS[:1]) == []
    [face] = find_faces(detector, image)
    np.testing.assert_allclose(face.points, points, atol=1.5)


def test_a_small_face_in_a_large_photo_is_found() -> None:
    image = canvas(2400, 200)
    points = draw_face(image, 1900, 80, 40)
    detector = DrawnDetector()
    assert find_faces(detector, image, ROUNDS[:2]) == []
    [face] = find_faces(detector, image)
    np.testing.assert_allclose(face.points, points, atol=1.5)


def test_a_photo_of_small_faces_is_looked_at_more_closely() -> None:
    image = canvas(800, 120)
    draw_face(image, 20, 30, 60)
    points = draw_face(image, 600, 50, 21)
    detector = DrawnDetector()
    assert len(detector(np.asarray(View(side=640).of(image)[0]))) == 1
    _, face = find_faces(detector, image)
    np.testing.assert_allclose(face.points, points, atol=1.5)


def test_a_plain_photo_is_looked_at_once_and_an_empty_one_in_every_view() -> None:
    plain, empty = DrawnDetector(), DrawnDetector()
    image = canvas(100, 100)
    assert find_faces(empty, image) == []
    draw_face(image, 20, 20, 60)
    assert len(find_faces(plain, image)) == 1
    assert len(plain.shown) == 1
    assert len(empty.shown) == sum(len(views) for views in ROUNDS)


def test_a_photo_of_one_pixel_has_no_face() -> None:
    assert find_faces(DrawnDetector(), canvas(1, 1)) == []
    assert find_faces(DrawnDetector(), canvas(3000, 2)) == []


# The encoder


@pytest.mark.parametrize(
    "other",
    [
        photo(turn=40.0),
        photo(turn=180.0),
        photo(size=40.0),
        photo(size=400.0, side=800),
        photo()[14:92, 24:102],
    ],
)
def test_a_face_is_itself_turned_scaled_and_cropped(encoder: FaceEncoder, other: Tensor) -> None:
    plain = subject_condition(encoder, [photo()], ["plain"])
    changed = subject_condition(encoder, [other], ["other"])
    assert plain @ changed > 0.99
    torch.testing.assert_close(encoder.embed(other[None])[0], changed)


def test_photos_of_one_subject_may_have_any_sizes(encoder: FaceEncoder) -> None:
    photos = [photo(), photo(side=200), canvas_of_two()]
    embedding = subject_condition(encoder, photos, ["a", "b", "c"])
    torch.testing.assert_close(embedding.norm(), torch.tensor(1.0))


def canvas_of_two() -> Tensor:
    """A small face to the left of a large one whose eyes lie further apart."""
    image = canvas(420, 200)
    draw_face(image, 20, 60, 90)
    draw_face(image, 180, 10, 180, 10.0)
    return pixels(image)


def test_the_largest_face_is_taken_or_the_one_asked_for(encoder: FaceEncoder) -> None:
    two = canvas_of_two()
    left, right = encoder.faces(two)
    assert left.points[0, 0] < right.points[0, 0]
    assert left.area < right.area
    assert encoder.aligned(two).equal(encoder.aligned(two, face=2))
    assert not encoder.aligned(two).equal(encoder.aligned(two, face=1))
    assert encoder.presence(two[None]).item() == pytest.approx(right.score)


@pytest.mark.parametrize("face", [0, 3, -1])
def test_a_face_that_is_not_there_is_told_with_how_many_are(
    encoder: FaceEncoder, face: int
) -> None:
    with pytest.raises(ImageError, match=r"us\.jpg shows 2: choose from 1 to 2") as caught:
        subject_condition(encoder, [canvas_of_two()], ["us.jpg"], face=face)
    assert "\n" not in str(caught.value)


def test_a_photo_without_a_face_is_refused_by_name(encoder: FaceEncoder) -> None:
    with pytest.raises(ImageError, match=r"'drawn' .* none in b\.jpg .* padded") as caught:
        subject_condition(encoder, [photo(), pixels(canvas(80, 60))], ["a.jpg", "b.jpg"])
    assert "\n" not in str(caught.value)


def test_what_shows_no_face_can_still_be_measured(encoder: FaceEncoder) -> None:
    """Images made with an adapter may show none: each has an embedding all the same."""
    images = torch.stack([photo(), pixels(canvas(120, 120))])
    assert encoder.embed(images).norm(dim=1).allclose(torch.ones(2))
    present, absent = encoder.presence(images).tolist()
    assert (present > 0.5, absent) == (True, 0.0)


def test_looking_once_tells_both(encoder: FaceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.stack([photo(), pixels(canvas(120, 120))])
    expected, found = (encoder.embed(images), encoder.presence(images)), []
    faces = encoder.faces
    monkeypatch.setattr(encoder, "faces", lambda image: found.append(1) or faces(image))
    embeddings, presence, boxes = encoder.see(images)
    torch.testing.assert_close((embeddings, presence), expected)
    assert [box is None for box in boxes] == [False, True]
    assert len(found) == 2


def test_a_subject_that_teaches_must_show_a_face_once(encoder: FaceEncoder) -> None:
    nobody = pixels(canvas(120, 120))
    subject = Subject(id="ann", photos=torch.stack([nobody, photo(), nobody]), captions=[""] * 3)
    expected = encoder.embed(photo()[None])
    torch.testing.assert_close(subject_conditions(encoder, subject), expected.expand(3, -1))
    hidden = replace(subject, photos=torch.stack([nobody, nobody]), captions=[""] * 2)
    with pytest.raises(ImageError, match=r"'drawn' .* finds none in the 2 of 'ann': ") as caught:
        subject_conditions(encoder, hidden)
    assert "\n" not in str(caught.value)
    shown = subject_conditions(encoder, hidden, made=True)
    torch.testing.assert_close(shown, encoder.embed(hidden.images))


def test_training_photos_are_cut_around_the_face_and_seen_whole(encoder: FaceEncoder) -> None:
    """The portrait of a standing person: the middle square shows no face."""
    standing = canvas(240, 600)
    draw_face(standing, 90, 40, 60)
    whole = Subject(id="ann", photos=[pixels(standing), photo()], captions=["", ""])
    cut = framed_subject(whole, 128, [encoder])
    assert cut.images.shape == (2, 128, 128, 3)
    assert all(len(encoder.faces(image)) == 1 for image in cut.images)
    used = subject_condition(encoder, whole.photos, ["a", "b"])
    learned = sphere_mean(subject_conditions(encoder, cut))
    assert used @ learned > 0.9999


def test_a_photo_is_searched_for_faces_once(
    encoder: FaceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, faces = [], encoder.faces
    monkeypatch.setattr(encoder, "faces", lambda image: found.append(1) or faces(image))
    cut = framed_subject(Subject(id="ann", photos=[photo()] * 3, captions=[""] * 3), 64, [encoder])
    subject_conditions(encoder, cut)
    seen_in(encoder, cut)
    assert len(found) == 3


def test_an_unknown_detector_or_network_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"face detector must be one of .*dlib.*'psychic'"):
        FaceEncoder(FaceConfig(name="x", detector="psychic"))
    with pytest.raises(ConfigError, match=r"face network must be one of dlib, .*'psychic'"):
        FaceEncoder(FaceConfig(name="x", detector="drawn", network="psychic:1"))


def test_other_weights_than_the_config_says_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs lorasynth[face]")
    network = f"onnx:{write_arcface(tmp_path / 'a.onnx')}"
    config = FaceConfig(name="x", detector="drawn", network=network, sha256="0" * 64)
    with pytest.raises(BundleError, match=r"'x' must have the sha256 000.*another one"):
        FaceEncoder(config)
