"""Every condition encoder keeps the contract; one row each."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor
from torch.nn import BatchNorm1d, BatchNorm2d

from lorasynth.avatars.config import JudgeConfig
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.reader import AttributeReader
from lorasynth.condition import (
    AttributeEncoder,
    AttributesConfig,
    ConditionEncoder,
    FaceConfig,
    FaceEncoder,
    JoinedEncoder,
    TrainedConfig,
    TrainedEncoder,
    VisionConfig,
    VisionEncoder,
    load_encoder,
    sphere_mean,
    subject_condition,
)
from lorasynth.core.errors import BundleError, ConfigError, ImageError
from lorasynth.core.randomness import torch_stream
from lorasynth.images.files import to_unit_range

from . import drawn  # noqa: F401  its detector becomes known by name
from .models import write_clip, write_dino
from .onnx_files import write_arcface, write_pack

SCRATCH = TemporaryDirectory()
KNOWN = AttributesConfig(name="tiny", attributes={"hat": ["none", "top"]})
AVATAR = TrainedConfig(name="tiny", image_size=32, width=6, features=12)


def avatar(config: TrainedConfig, seed: int) -> ConditionEncoder:
    """An encoder as it is after training: its statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    encoder = TrainedEncoder(config)
    for module in encoder.modules():
        if isinstance(module, BatchNorm1d | BatchNorm2d):
            module.momentum = None  # take the statistics of what is seen, all of it
    encoder(to_unit_range(images(64)))
    return encoder.eval()


def reader(seed: int) -> ConditionEncoder:
    torch.manual_seed(seed)
    network = AttributeJudge(JudgeConfig(image_size=32, features=12))
    for module in network.modules():
        if isinstance(module, BatchNorm1d | BatchNorm2d):
            module.momentum = None
    network(to_unit_range(images(64)))
    return AttributeReader(network, "tiny")


@cache
def written(write: Callable[..., Path], seed: int) -> Path:
    """A model on disk."""
    return write(Path(SCRATCH.name) / f"{write.__name__}{seed}", seed=seed)


def dlib_faces(seed: int) -> ConditionEncoder:
    pytest.importorskip("dlib", reason="needs lorasynth[face]")
    return FaceEncoder(FaceConfig(name="tiny"))


def onnx_faces(seed: int) -> ConditionEncoder:
    pytest.importorskip("onnxruntime", reason="needs lorasynth[face]")
    network = f"onnx:{written(write_arcface, seed)}"
    return FaceEncoder(FaceConfig(name="tiny", detector="drawn", network=network, licence="MIT"))


def insightface_faces(seed: int) -> ConditionEncoder:
    pytest.importorskip("insightface", reason="needs lorasynth[insightface]")
    spec = f"insightface:{written(write_pack, seed)}"
    return FaceEncoder(FaceConfig(name="tiny", detector=spec, network=spec))


def vision(write: Callable[..., Path], seed: int) -> ConditionEncoder:
    config = VisionConfig(name="tiny", model=str(written(write, seed)))
    return VisionEncoder.fetch(config, torch.device("cpu"))


@dataclass(frozen=True)
class Row:
    """How to make an encoder.

    Attributes:
        make: with weights of a seed.
        many: images that are more than are computed at once.
        others: whether it can have other weights.
    """

    make: Callable[[int], ConditionEncoder]
    many: int = 300
    others: bool = True

    def __call__(self) -> ConditionEncoder:
        return self.make(0)


ROWS: dict[str, Row] = {
    "trained-residual": Row(lambda seed: avatar(AVATAR, seed)),
    "trained-separable": Row(lambda seed: avatar(replace(AVATAR, trunk="separable"), seed)),
    "attributes": Row(lambda seed: AttributeEncoder(KNOWN, avatar(AVATAR, seed))),
    "reader": Row(reader),
    "joined": Row(lambda seed: JoinedEncoder([avatar(AVATAR, seed), reader(seed)], "tiny")),
    "face-dlib": Row(dlib_faces, many=5, others=False),
    "face-onnx": Row(onnx_faces, many=5),
    "face-insightface": Row(insightface_faces, many=5),
    "vision-clip": Row(lambda seed: vision(write_clip, seed)),
    "vision-dino": Row(lambda seed: vision(write_dino, seed)),
}
#: Those that leave photos to other encoders.
COMPOSED = ("attributes", "joined")
rows = pytest.mark.parametrize("row", ROWS)
#: Those that look at the middle of an image, whatever it shows; of faces, see `test_faces.py`.
squares = pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.startswith("face") and row not in COMPOSED]
)


def images(count: int, size: int = 32) -> Tensor:
    """Random blobs, smooth enough to look alike at other sizes."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch_stream(0, "blobs"))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1)


# A unit vector and a probability for each image


@rows
def test_embeddings_are_unit_vectors_that_tell_images_apart(row: str) -> None:
    encoder = ROWS[row]()
    assert isinstance(encoder, ConditionEncoder)
    embeddings = encoder.embed(images(5))
    assert embeddings.shape == (5, encoder.width)
    assert embeddings.dtype == torch.float32
    assert embeddings.device.type == "cpu"
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    cosines = embeddings @ embeddings.T
    assert cosines[~torch.eye(5, dtype=torch.bool)].max() < 0.9999


@rows
def test_presence_is_a_probability(row: str) -> None:
    encoder = ROWS[row]()
    presence = encoder.presence(images(5))
    assert all(map(torch.equal, encoder.look(images(5)), (encoder.embed(images(5)), presence)))
    assert presence.shape == (5,)
    assert ((presence >= 0) & (presence <= 1)).all()


@rows
def test_an_image_does_not_depend_on_its_batch(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorasynth.condition.faces.encoder.BATCH", 2)
    encoder, many = ROWS[row](), images(ROWS[row].many)
    chosen = [0, *{len(many) * 5 // 6, min(256, len(many) - 2)}, len(many) - 1]
    for method in (encoder.embed, encoder.presence):
        together = method(many)
        apart = torch.cat([method(many[i : i + 1]) for i in chosen])
        torch.testing.assert_close(together[chosen], apart, atol=1e-5, rtol=0)


@rows
@pytest.mark.parametrize("size", [24, 64])
def test_images_of_another_size_are_scaled(row: str, size: int) -> None:
    encoder = ROWS[row]()
    scaled = encoder.embed(images(4, size))
    cosines = scaled @ encoder.embed(images(4)).T
    assert (cosines.argmax(dim=1) == torch.arange(4)).all()
    flat = torch.full((1, 1, 1, 3), 90, dtype=torch.uint8)
    torch.testing.assert_close(
        encoder.embed(flat.expand(1, size, size, 3)), encoder.embed(flat.expand(1, 32, 32, 3))
    )


@rows
def test_nothing_is_learned_by_looking(row: str) -> None:
    encoder = ROWS[row]()
    first = encoder.embed(images(3))
    encoder.presence(images(4))
    again = encoder.embed(images(3))
    assert again.equal(first)
    assert not again.requires_grad


# On disk


@rows
def test_what_is_saved_can_be_loaded(row: str, tmp_path: Path) -> None:
    encoder = ROWS[row]()
    encoder.save(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    for name in ("name", "image_size", "width", "licence"):
        assert getattr(loaded, name) == getattr(encoder, name)
    assert type(loaded) is type(encoder)
    cosines = (loaded.embed(images(3)) * encoder.embed(images(3))).sum(dim=1)
    assert cosines.min() > 1 - 1e-4  # saved in half precision
    difference = loaded.presence(images(3)) - encoder.presence(images(3))
    assert difference.abs().max() < 1e-2
    loaded.save(tmp_path / "again")
    reloaded = load_encoder(tmp_path / "again")
    assert reloaded.embed(images(3)).equal(loaded.embed(images(3)))


@pytest.mark.parametrize("row", [row for row in ROWS if not row.startswith("face")])
def test_what_is_loaded_goes_to_the_device_that_was_chosen(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ROWS[row]().save(tmp_path / "encoder")
    seen: list[torch.device] = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: seen.append(device) or self)
    load_encoder(tmp_path / "encoder", "cuda:1")
    assert set(seen) == {torch.device("cuda:1")}


def changed(**changes: object) -> Callable[[Path], object]:
    """What writes other values into a folder's config."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def largest(folder: Path) -> Path:
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size)


def other_width(folder: Path) -> None:
    stated = json.loads((folder / "config.json").read_text())
    changed(**({"width": stated["width"] + 1} if "width" in stated else {"attributes": {}}))(folder)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "other width": other_width,
    "unknown option": changed(colour="blue"),
    "unknown kind": changed(kind="psychic"),
    "cut weights": lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:-5]),
    "no weights": lambda folder: largest(folder).unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "garbled config": lambda folder: (folder / "config.json").write_text("{"),
}


@rows
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_told_in_one_line(row: str, tmp_path: Path, damage: str) -> None:
    ROWS[row]().save(tmp_path / "encoder")
    DAMAGES[damage](tmp_path / "encoder")
    with pytest.raises(BundleError, match="encoder") as caught:
        load_encoder(tmp_path / "encoder")
    assert "\n" not in str(caught.value)


# Several images of one subject


@squares
def test_a_subject_is_the_mean_of_its_images_on_the_sphere(row: str) -> None:
    encoder = ROWS[row]()
    encoder.look = lambda images: (encoder.embed(images), torch.ones(len(images)))  # type: ignore[method-assign]
    embedding = subject_condition(encoder, images(3), ["a", "b", "c"])
    summed = encoder.embed(images(3)).sum(dim=0)
    torch.testing.assert_close(embedding, summed / summed.norm())
    alone = subject_condition(encoder, images(1), ["a"])
    torch.testing.assert_close(alone, encoder.embed(images(1))[0])


def test_the_mean_on_the_sphere_is_between() -> None:
    axes = torch.eye(3)
    torch.testing.assert_close(sphere_mean(axes[:2]), torch.tensor([0.5**0.5, 0.5**0.5, 0.0]))
    torch.testing.assert_close(sphere_mean(axes[:1]), axes[0])


@squares
def test_an_image_without_a_face_is_refused_by_name(row: str) -> None:
    encoder = ROWS[row]()
    presence = torch.tensor([0.9, 0.5, 0.02])
    encoder.look = lambda images: (encoder.embed(images), presence)  # type: ignore[method-assign]
    with pytest.raises(ImageError, match=r"'tiny' .* finds none in c\.png \(prob.* 0\.02\)") as e:
        subject_condition(encoder, images(3), ["a.png", "b.png", "c.png"])
    assert "\n" not in str(e.value)
    assert encoder.advice in str(e.value)


@rows
def test_the_fingerprint_is_of_the_weights_as_they_are_stored(row: str, tmp_path: Path) -> None:
    encoder = ROWS[row]()
    encoder.save(tmp_path / "encoder")
    assert load_encoder(tmp_path / "encoder").fingerprint == encoder.fingerprint
    assert ROWS[row]().fingerprint == encoder.fingerprint
    if ROWS[row].others:
        assert ROWS[row].make(1).fingerprint != encoder.fingerprint


@rows
def test_faces_are_chosen_only_from_an_encoder_that_finds_them(row: str) -> None:
    encoder = ROWS[row]()
    assert encoder.finds_faces == row.startswith("face")
    error = ImageError if encoder.finds_faces else ConfigError
    with pytest.raises(error, match=r"face.*'tiny'|'tiny'.*face"):
        subject_condition(encoder, torch.zeros(1, 32, 32, 3, dtype=torch.uint8), ["a.png"], face=1)
