"""Synthesis from attributes in words: with a photo, without, and what cannot be."""

from pathlib import Path

import pytest

from command_line import Run
from lorasynth.adapter import Adapter
from lorasynth.library import Library

from .conftest import DENOISER, QUICK, TRAINING, World


@pytest.fixture(scope="module")
def library(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of drawn subjects, whose table tells their attributes."""
    from command_line import call

    out = tmp_path_factory.mktemp("attributes") / "library"
    assert call(["collect", "avatars:3,images=2", "-o", out, "--base", world.base, *QUICK]) == 0
    return out


def train(
    world: World, run: Run, library: Path, root: Path, *identity: object
) -> tuple[Path, Path]:
    encoder, codec, synthesizer = root / "encoder", root / "codec", root / "synthesizer"
    made = run("encoders", "attributes", library, "--column", "top", *identity, "-o", encoder)
    assert made.status == 0, made.err
    assert "top: " in made.out
    images = ("--base", world.base, "--generated.images", 1, "--generated.steps", 1)
    assert run("library", "embed", library, "--encoder", encoder, *images).status == 0
    fit = ("fit", "pca", library, "-o", codec, "--latents", 2, "--run", root / "fit")
    assert run(*fit).status == 0
    sets = [*TRAINING, *DENOISER]
    parts = ("--codec", codec, "--encoder", encoder, "--base", world.base, "--run", root / "run")
    result = run("train", library, *parts, "-o", synthesizer, *sets)
    assert result.status == 0, result.err
    return encoder, synthesizer


def test_attributes_without_a_photo(world: World, run: Run, library: Path, tmp_path: Path) -> None:
    tops = sorted(set(Library.open(library).table["top"].to_pylist()))
    assert len(tops) > 1
    _, synthesizer = train(world, run, library, tmp_path)
    made = []
    for top in tops[:2]:
        file = tmp_path / f"{top}.safetensors"
        asked = ("--attribute", f"top={top}", "-o", file, "--synthesizer", synthesizer)
        result = run("synth", *asked)
        assert result.status == 0, result.err
        made.append(Adapter.load(file))
    first, second = (next(iter(adapter.factors.values())).B for adapter in made)
    assert not first.equal(second)
    where = ("--synthesizer", synthesizer, "-o", tmp_path / "x.safetensors")
    run("synth", *where).is_one_error("needs an image or one of top")
    run("synth", *where, "--attribute", "top=crown").is_one_error("top must be one of", "'crown'")
    run("synth", *where, "--attribute", "shoes=red").is_one_error("no attribute 'shoes'")
    run("synth", *where, "--attribute", "top").is_one_error("NAME=VALUE", "'top'")


def test_attributes_beside_a_photo(world: World, run: Run, library: Path, tmp_path: Path) -> None:
    top = Library.open(library).table["top"].to_pylist()[0]
    _, synthesizer = train(world, run, library, tmp_path, "--identity", world.encoder)
    made = []
    for index, asked in enumerate([(), ("--attribute", f"top={top}")]):
        file = tmp_path / f"{index}.safetensors"
        result = run("synth", world.photo, *asked, "-o", file, "--synthesizer", synthesizer)
        assert result.status == 0, result.err
        made.append(next(iter(Adapter.load(file).factors.values())).B)
    assert not made[0].equal(made[1])


def test_an_encoder_of_images_takes_no_attributes(world: World, run: Run, tmp_path: Path) -> None:
    where = ("--synthesizer", world.synthesizer, "-o", tmp_path / "x.safetensors")
    result = run("synth", world.photo, "--attribute", "top=bun", *where)
    result.is_one_error("--attribute is for encoders of attributes")
    run("synth", *where).is_one_error("a subject needs a photo")
    made = run("encoders", "attributes", world.library, "--column", "hat", "-o", tmp_path / "e")
    made.is_one_error("a column of the table", "'hat'")
