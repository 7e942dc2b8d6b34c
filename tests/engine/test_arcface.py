"""The ArcFace loss, and the training of a tiny encoder with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lorasynth.condition import TrainedConfig, TrainedEncoder
from lorasynth.condition.trunks import TRUNKS, augment
from lorasynth.core.errors import ImageError
from lorasynth.core.randomness import numpy_stream, torch_stream
from lorasynth.engine.arcface import (
    ArcFaceHead,
    Squares,
    draw_negatives,
    draw_pattern,
    tear,
    train_encoder,
)
from lorasynth.engine.config import ArcFaceConfig
from lorasynth.engine.trainer import Optimisation
from lorasynth.evaluation.identification import identification
from lorasynth.images import FolderSubjects


def head_and_batch(
    margin: float, seed: int = 0, scale: float = 10.0
) -> tuple[ArcFaceHead, Tensor, Tensor]:
    torch.manual_seed(seed)
    head = ArcFaceHead(width=5, classes=4, scale=scale, margin=margin)
    embeddings = functional.normalize(torch.randn(7, 5), dim=1).requires_grad_()
    return head, embeddings, torch.randint(4, (7,))


@given(st.integers(0, 1000))
def test_without_a_margin_it_is_the_softmax_of_scaled_cosines(seed: int) -> None:
    head, embeddings, subject = head_and_batch(0.0, seed)
    cosines = functional.cosine_similarity(embeddings[:, None], head.centres[None], dim=2)
    plain = functional.cross_entropy(10 * cosines, subject)
    torch.testing.assert_close(head(embeddings, subject), plain, atol=1e-4, rtol=1e-4)


def test_the_margin_is_added_to_the_angle_of_the_own_class() -> None:
    head, embeddings, subject = head_and_batch(0.3)
    with torch.no_grad():
        angles = (embeddings @ functional.normalize(head.centres, dim=1).T).acos()
        angles += 0.3 * functional.one_hot(subject, 4)
        expected = functional.cross_entropy(10 * angles.cos(), subject)
        torch.testing.assert_close(head(embeddings, subject), expected)
        assert head(embeddings, subject) > ArcFaceHead.forward(
            head_and_batch(0.0)[0], embeddings, subject
        )


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.35]))
def test_the_gradient_pulls_to_the_own_class_and_from_the_others(seed: int, margin: float) -> None:
    head, embeddings, subject = head_and_batch(margin, seed, scale=3.0)
    head.centres.data = torch.eye(4, 5)  # so a cosine is a coordinate
    head(embeddings, subject).backward()
    assert embeddings.grad is not None
    pull = embeddings.grad[:, :4]
    own = functional.one_hot(subject, 4).bool()
    within = embeddings[:, :4][own].acos() + margin < torch.pi  # else only the others are felt
    assert (pull[own][within] < 0).all()
    assert (pull[~own] > 0).all()


def test_only_directions_of_centres_count() -> None:
    head, embeddings, subject = head_and_batch(0.35)
    before = head(embeddings, subject)
    with torch.no_grad():
        head.centres *= torch.tensor([0.1, 1, 10, 100])[:, None]
    torch.testing.assert_close(head(embeddings, subject), before)


# Trunks


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_trunk_takes_any_size_that_it_is_made_for(trunk: str, size: int) -> None:
    network = TRUNKS[trunk](size, 10).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_augmenting_degrades_a_little_and_keeps_colours() -> None:
    images = torch.rand(64, 3, 16, 16, generator=torch_stream(0, "pictures")) * 2 - 1
    once, again = (augment(images, torch_stream(0, "augment")) for _ in range(2))
    assert once.equal(again)
    assert once.shape == images.shape
    assert (once - images).flatten(1).norm(dim=1).min() > 0
    assert (once.mean(dim=(2, 3)) - images.mean(dim=(2, 3))).abs().max() < 0.1


# Images that show no subject


def test_patterns_are_images_that_differ() -> None:
    drawn = [draw_pattern(numpy_stream(0, i), 16) for i in range(60)]
    assert all(image.shape == (16, 16, 3) and image.dtype == np.uint8 for image in drawn)
    assert len({image.tobytes() for image in drawn}) == 60
    assert np.array_equal(draw_pattern(numpy_stream(0, 7), 16), drawn[7])


def test_a_torn_image_keeps_its_colours_but_not_its_subject() -> None:
    image = numpy_stream(0, "image").integers(0, 256, (32, 32, 3), dtype=np.uint8)
    torn = tear(image, numpy_stream(0, "tear"))
    assert torn.shape == image.shape
    assert not np.array_equal(torn, image)
    assert np.array_equal(np.sort(torn, None), np.sort(image, None))
    tiles = {torn[y : y + 8, x : x + 8].tobytes() for y in range(0, 32, 8) for x in range(0, 32, 8)}
    assert image[8:16, 8:16].tobytes() in tiles


# Training


def two_colours(size: int = 16) -> Squares:
    """Four subjects, 8 images each: their colours are who they are, stripes what varies."""
    stream = torch_stream(0, "subjects")
    colours = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]])
    subject = torch.arange(32) // 8
    stripes = torch.randint(-40, 40, (32, 1, size, 1), generator=stream)
    images = colours[subject][:, None, None] + stripes + torch.zeros(32, size, size, 1)
    return Squares(images.clamp(0, 255).to(torch.uint8), subject)


ENCODER = TrainedConfig(name="tiny", image_size=16, width=4, features=8)


def train(checkpoint: Path, steps: int = 25) -> TrainedEncoder:
    options = Optimisation(steps=steps, batch=20, lr=3e-3, warmup=5, ema=0.8, seed=3)
    config = ArcFaceConfig(negative_share=0.2, optimisation=options)
    squares = two_colours()
    negatives = draw_negatives(squares.images, 12, seed=3)
    return train_encoder(squares, negatives, ENCODER, config, checkpoint, torch.device("cpu"))


def test_a_trained_encoder_knows_its_subjects_and_what_is_none(tmp_path: Path) -> None:
    squares = two_colours()
    encoder = train(tmp_path / "c.safetensors", steps=60)
    assert not encoder.training
    embeddings = encoder.embed(squares.images).unflatten(0, (4, 8))
    found = identification(embeddings[:, 0], embeddings[:, 5])
    assert found.rank1 == 1
    assert found.same > found.different + 0.5
    noise = torch.randint(0, 256, (20, 16, 16, 3), generator=torch_stream(0, "no")).to(torch.uint8)
    assert encoder.presence(squares.images).mean() > encoder.presence(noise).mean() + 0.3


def test_training_again_gives_the_same_encoder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(tmp_path / "a.safetensors", steps=4)
    torch.manual_seed(2)
    second = train(tmp_path / "b.safetensors", steps=4)
    images = two_colours().images
    assert first.embed(images).equal(second.embed(images))


def test_subjects_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    for name, side in (("ann", 20), ("ben", 30)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (side, 24), "red").save(tmp_path / name / "1.png")
    (tmp_path / "cyd").mkdir()
    (tmp_path / "cyd/1.png").write_bytes(b"no image")
    source = FolderSubjects(tmp_path)
    squares, left_out = Squares.read(source, source.ids, 16)
    assert squares.images.shape == (2, 16, 16, 3)
    assert squares.subject.tolist() == [0, 1]
    assert list(left_out) == ["cyd"]
    with pytest.raises(ImageError, match="no subject can be used"):
        Squares.read(source, ["cyd"], 16)
