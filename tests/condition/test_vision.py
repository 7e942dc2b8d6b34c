"""CLIP, SigLIP and DINO through transformers, untrained and tiny, from folders."""

import shutil
from collections.abc import Callable
from os import truncate
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from lorasynth.condition import VisionEncoder, load_encoder
from lorasynth.core.errors import BundleError, ConfigError, LorasynthError
from lorasynth.core.randomness import torch_stream

from .models import PROCESSING, write_clip, write_dino, write_siglip
from .test_contract import changed

MODELS: dict[str, Callable[[Path], Path]] = {
    "clip": write_clip,
    "dino": write_dino,
    "siglip": write_siglip,
}
models = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / f"my.{name}") for name, write in MODELS.items()}


def images(size: int = 32) -> Tensor:
    stream = torch_stream(0, "pictures")
    return torch.randint(0, 256, (3, size, size, 3), generator=stream).to(torch.uint8)


def by_transformers(name: str, folder: Path) -> Tensor:
    """The embeddings that transformers' own classes give."""
    mean, std = (
        torch.tensor(PROCESSING[f"image_{what}"])[:, None, None] for what in ("mean", "std")
    )
    unit = (images().permute(0, 3, 1, 2) / 255 - mean) / std
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if name == "clip":
            found = model.visual_projection(model.vision_model(unit).pooler_output)
        elif name == "siglip":
            found = model.vision_model(unit).pooler_output
        else:
            found = model(unit).pooler_output
    return functional.normalize(found, dim=1)


@models
def test_embeddings_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    encoder = load_encoder(f"clip:{folders[name]}")
    assert isinstance(encoder, VisionEncoder)
    assert (encoder.name, encoder.image_size) == (f"my-{name}", 32)
    expected = by_transformers(name, folders[name])
    assert encoder.width == expected.shape[1]
    torch.testing.assert_close(encoder.embed(images()), expected, atol=1e-5, rtol=1e-4)
    assert encoder.presence(images()).tolist() == [1, 1, 1]


@models
def test_a_saved_encoder_needs_the_model_no_more(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    source = shutil.copytree(folders[name], tmp_path / "source")
    encoder = load_encoder(f"dino:{source}")
    encoder.save(tmp_path / "encoder")
    shutil.rmtree(source)
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.fingerprint == encoder.fingerprint
    assert (loaded.embed(images()) * encoder.embed(images())).sum(dim=1).min() > 0.999


def test_the_licence_is_stated_where_it_is_known() -> None:
    from lorasynth.condition.vision import named

    assert named("openai/clip-vit-large-patch14").licence == "MIT"
    assert named("facebook/dinov2-base").licence == "Apache-2.0"
    assert "model card" in named("somebody/something").licence


def test_a_model_without_a_word_on_preparation_has_defaults(tmp_path: Path) -> None:
    folder = write_dino(tmp_path / "dino")
    (folder / "preprocessor_config.json").unlink()
    encoder = load_encoder(f"dino:{folder}")
    assert encoder.image_size == 40  # what the model learned from


WEIGHTS = "model.safetensors"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "pickled weights": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
    "cut weights": lambda folder: truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 9),
    "more layers": changed(num_hidden_layers=3),
    "other width": changed(hidden_size=18),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "another type": changed(model_type="psychic"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_told_in_one_line(
    folders: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(folders["dino"], tmp_path / "model")
    DAMAGES[damage](folder)
    with pytest.raises(BundleError, match="image encoder must") as caught:
        load_encoder(f"dino:{folder}")
    assert "\n" not in str(caught.value)


def test_a_model_of_text_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=30,
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="size of its images") as caught:
        load_encoder(f"clip:{tmp_path / 'bert'}")
    assert "\n" not in str(caught.value)


def test_a_model_that_is_nowhere_is_told_in_one_line() -> None:
    for name, said in (("hub:nobody/nothing", "is none"), ("nobody/nothing", "is not there")):
        with pytest.raises(LorasynthError, match=rf"nobody/nothing'? {said}") as caught:
            load_encoder(f"clip:{name}")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="clip:hub:openai/clip-vit-large-patch14"):
        load_encoder("clip")
