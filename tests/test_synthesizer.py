"""The synthesizer as Python programs use it, on the shipped bundle."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorasynth import Synthesizer
from lorasynth.adapter import Adapter
from lorasynth.core.errors import ConfigError, ImageError
from lorasynth.images import as_photo

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "examples" / "photo.png"


@pytest.fixture(scope="module")
def synth() -> Synthesizer:
    return Synthesizer.from_pretrained(ROOT / "bundle" / "synthesizer")


@pytest.fixture(scope="module")
def expected(synth: Synthesizer) -> torch.Tensor:
    return synth(PHOTO).to_vector()


def pixels() -> np.ndarray:
    return np.array(Image.open(PHOTO).convert("RGB"))


FORMS = {
    "text": lambda: str(PHOTO),
    "Pillow image": lambda: Image.open(PHOTO),
    "array": pixels,
    "tensor": lambda: torch.from_numpy(pixels()),
    "tensor, channels first": lambda: torch.from_numpy(pixels()).permute(2, 0, 1) / 255,
    "floats": lambda: pixels() / 255,
    "bytes": PHOTO.read_bytes,
    "open file": lambda: io.BytesIO(PHOTO.read_bytes()),
    "list of one": lambda: [PHOTO],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_photo_may_have_any_form(synth: Synthesizer, expected: torch.Tensor, form: str) -> None:
    torch.testing.assert_close(synth(FORMS[form]()).to_vector(), expected)


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        (3, "but is a int"),
        (None, "but is a NoneType"),
        (np.zeros((4, 4)), r"must be \(height, width, 3\)"),
        (np.zeros((1, 3, 8, 8), np.float32), "give one photo at a time"),
        (np.full((8, 8, 3), 7.0), "from 0 to 1, but are from 7 to 7"),
        (np.full((8, 8, 3), np.nan), "from 0 to 1"),
        (np.zeros((8, 8, 3), np.int64), "are torch.int64"),
        (b"no image", "whole image file"),
    ],
)
def test_what_is_no_photo_is_refused(photo: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        as_photo(photo)


def test_an_unknown_keyword_is_refused(synth: Synthesizer) -> None:
    with pytest.raises(TypeError, match="'num_inference_steps': options are seed, guidance"):
        synth(PHOTO, num_inference_steps=1)


def test_paths_may_be_text_and_nobody_is_nobody(synth: Synthesizer, tmp_path: Path) -> None:
    [written] = synth.write([str(PHOTO)], [str(tmp_path / "x.safetensors")])
    torch.testing.assert_close(Adapter.load(written).to_vector(), synth(PHOTO).to_vector())
    assert synth.many([]) == []
    assert synth.write([], []) == []
    with pytest.raises(ConfigError, match="1 subjects and 0 paths"):
        synth.write([PHOTO], [])


def test_an_embedding_stands_for_its_photo(
    synth: Synthesizer, expected: torch.Tensor, tmp_path: Path
) -> None:
    kept = synth.embed(PHOTO)[None]
    [adapter] = synth.from_conditions(kept)
    torch.testing.assert_close(adapter.to_vector(), expected)
    [path] = synth.write_conditions(kept, [tmp_path / "me.safetensors"])
    torch.testing.assert_close(Adapter.load(path).to_vector(), expected)


def test_it_moves_and_is_saved_as_diffusers_models_are(
    synth: Synthesizer, expected: torch.Tensor, tmp_path: Path
) -> None:
    assert synth.to("cpu").device == torch.device("cpu")
    assert synth.dtype == torch.float32
    synth.save_pretrained(tmp_path / "copy")
    copy = Synthesizer.from_pretrained(tmp_path / "copy")
    assert copy.knows == synth.knows == "drawn avatars"
    assert (copy(PHOTO).to_vector() - expected).norm() < 1e-3 * expected.norm()


def test_both_are_shown_in_one_line(synth: Synthesizer) -> None:
    adapter = synth(PHOTO)
    assert (adapter.device.type, adapter.to(torch.float16).dtype) == ("cpu", torch.float16)
    assert "70 modules of rank 4" in repr(adapter)
    assert "knows drawn avatars" in repr(synth)
    assert max(len(repr(adapter)), len(repr(synth))) < 300
