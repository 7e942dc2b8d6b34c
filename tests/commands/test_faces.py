"""Faces in photos, and encoders by name, from the command line."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from command_line import Run
from condition.drawn import canvas, draw_face
from condition.models import write_clip
from condition.onnx_files import write_arcface
from lorasynth.adapter import Adapter
from lorasynth.condition import FaceConfig, FaceEncoder, load_encoder
from lorasynth.library import Library
from lorasynth.synthesizer import Synthesizer

from .conftest import World, collect_arguments

pytest.importorskip("onnxruntime", reason="needs lorasynth[face]")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder of drawn faces, as wide as the one of the world."""
    folder = tmp_path_factory.mktemp("faces")
    path = write_arcface(folder / "arcface.onnx", width=6)
    config = FaceConfig(name="drawn", detector="drawn", network=f"onnx:{path}")
    FaceEncoder(config).save(folder / "encoder")
    return folder / "encoder"


@pytest.fixture(scope="module")
def synthesizer(world: World, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthesizer") / "faces"
    made = replace(Synthesizer.from_pretrained(world.synthesizer), encoder=load_encoder(faces))
    made.save(folder)
    return folder


def write_two(path: Path) -> Path:
    image = canvas(210, 100)
    draw_face(image, 10, 30, 45)
    draw_face(image, 90, 5, 90, 12.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def write_one(path: Path, side: int = 100, share: float = 0.6) -> Path:
    image = canvas(side, side)
    draw_face(image, side * (1 - share) / 2, side * (1 - share) / 2, side * share)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_any_encoder_option_takes_a_name(world: World, run: Run, tmp_path: Path) -> None:
    library = shutil.copytree(world.library, tmp_path / "library")
    model = write_clip(tmp_path / "model")
    result = run(*collect_arguments(world, library), "--encoder", f"clip:{model}")
    assert result.status == 0, result.err
    [column] = [path for path in library.rglob("model_*") if path.is_file()]
    assert Library.open(library).column(column.stem).shape == (3, 2, 12)


def test_one_face_of_several(run: Run, synthesizer: Path, tmp_path: Path) -> None:
    photo = write_two(tmp_path / "us.png")

    def lora(*options: object) -> Tensor:
        out = tmp_path / "me.safetensors"
        result = run("synth", photo, "-o", out, "--synthesizer", synthesizer, *options)
        assert result.status == 0, result.err
        return torch.cat([part.flatten() for _, part in sorted(load_file(out).items())])

    assert lora().equal(lora("--face", 2))
    assert not lora().equal(lora("--face", 1))


def test_a_face_that_is_not_there(run: Run, synthesizer: Path, tmp_path: Path) -> None:
    photo, out = write_two(tmp_path / "us.png"), tmp_path / "out" / "me.safetensors"
    arguments = ("synth", photo, "-o", out, "--synthesizer", synthesizer)
    run(*arguments, "--face", 3).is_one_error("shows 2", str(photo))
    assert run(*arguments, "--face", 0).status == 2
    assert not out.parent.exists()


def test_a_face_of_an_encoder_that_finds_none(world: World, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out" / "me.safetensors"
    arguments = ("synth", world.photo, "-o", out, "--synthesizer", world.synthesizer)
    run(*arguments, "--face", 1).is_one_error("--face", "'tiny-one'")
    assert not out.parent.exists()


def test_no_face_in_one_of_several_photos(run: Run, synthesizer: Path, tmp_path: Path) -> None:
    good = write_one(tmp_path / "in" / "1.png")
    canvas(90, 60).save(tmp_path / "in" / "2.png")
    out = tmp_path / "me.safetensors"
    result = run("synth", tmp_path / "in", "-o", out, "--synthesizer", synthesizer)
    assert result.status == 0
    assert re.search("passed over: .* finds none in .*2.png.* crop it", result.err)
    alone = tmp_path / "alone.safetensors"
    assert run("synth", good, "-o", alone, "--synthesizer", synthesizer).status == 0
    assert torch.equal(Adapter.load(alone).to_vector(), Adapter.load(out).to_vector())


def test_photos_of_several_sizes(run: Run, synthesizer: Path, tmp_path: Path) -> None:
    write_one(tmp_path / "in" / "1.png")
    write_one(tmp_path / "in" / "2.png", side=160)
    write_two(tmp_path / "in" / "3.png")
    out = tmp_path / "me.safetensors"
    result = run("synth", tmp_path / "in", "-o", out, "--synthesizer", synthesizer)
    assert result.status == 0, result.err


def test_subjects_without_a_face_or_with_an_unreadable_image(
    world: World, run: Run, faces: Path, tmp_path: Path
) -> None:
    """They are told before training and left out; one image with a face is enough."""
    for name in ("ann", "ben"):
        for i in range(2):
            write_one(tmp_path / "in" / name / f"{i}.png", share=1.1)  # seen at 16 pixels
    (tmp_path / "in" / "dan").mkdir()
    for hidden in ("ben/1.png", "dan/0.png"):
        Image.new("RGB", (60, 60)).save(tmp_path / "in" / hidden)
    (tmp_path / "in" / "cyd").mkdir()
    (tmp_path / "in" / "cyd" / "1.png").write_text("no image")
    library = tmp_path / "library"
    there = replace(world, subjects=tmp_path / "in")
    arguments = (*collect_arguments(there, library), "--encoder", faces)
    result = run(*arguments)
    assert result.status == 0, result.err
    assert "2 adapters, 2 of them new" in result.out
    found = Library.open(library)
    assert found.ids == ["ann", "ben"]
    assert found.column(found.columns[0]).shape[:2] == (2, 2)
    failures = json.loads((tmp_path / "library.failures.json").read_text())
    assert "cyd/1.png" in str(failures["cyd"])
    assert "finds none in the 1 of 'dan'" in str(failures["dan"])
