"""`lorasynth encoders`: by name, as folders, joined, and trained on a folder of subjects."""

import json
from pathlib import Path

import pytest
import torch

from command_line import Run, interrupt
from condition.models import write_clip
from condition.onnx_files import write_arcface
from lorasynth.condition import JoinedEncoder, TrainedEncoder, load_encoder

from .conftest import write_image

BRIEF = ("--optimisation.steps", 3, "--optimisation.batch", 8, "--negatives", 4, "--workers", 1)
SMALL = ("--image-size", 16, "--features", 8, "--width", 4, "--device", "cpu")


def test_the_table_has_all_encoders_and_their_licences(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasynth.condition import named

    known = named.find_spec
    monkeypatch.setattr(named, "find_spec", lambda name: None if name == "dlib" else known(name))
    result = run("encoders", "list")
    assert (result.status, result.err) == (0, "")
    for word in ("dlib", "insightface:PACK", "onnx:FILE", "clip:MODEL", "CC0-1.0", "FOLDER"):
        assert word in result.out
    assert "non-commercial" in " ".join(result.out.split())
    assert "lorasynth encoders make" in result.out
    assert "dlib lacks dlib: pip install '.[face]'" in result.out


def test_an_encoder_by_name_becomes_a_folder_with_its_options(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="needs lorasynth[face]")
    path = write_arcface(tmp_path / "my.onnx")
    options = ("--detector", "dlib", "--std", 128, "--licence", "MIT")
    result = run("encoders", "make", f"onnx:{path}", "-o", tmp_path / "encoder", *options)
    assert result.status == 0, result.err
    assert "my, 112 pixels to 16 dimensions" in result.out
    stated = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert (stated["std"], stated["network"], stated["width"]) == (128.0, "onnx:model.onnx", 16)
    assert load_encoder(tmp_path / "encoder").licence == "MIT"


def test_encoders_are_made_joined_and_read_attributes(run: Run, tmp_path: Path) -> None:
    from lorasynth.avatars.config import JudgeConfig
    from lorasynth.avatars.judge import AttributeJudge

    torch.manual_seed(0)
    AttributeJudge(JudgeConfig(image_size=16, features=8)).save(tmp_path / "network")
    made = run("encoders", "make", f"reader:{tmp_path / 'network'}", "-o", tmp_path / "reader")
    assert made.status == 0, made.err
    model = f"clip:{write_clip(tmp_path / 'model')}"
    joined = run("encoders", "join", model, tmp_path / "reader", "-o", tmp_path / "both")
    assert joined.status == 0, joined.err
    assert "model-and-reader, 59 dimensions, licences: " in joined.out
    both = load_encoder(tmp_path / "both")
    assert isinstance(both, JoinedEncoder)
    assert [part.width for part in both.parts] == [12, 47]
    alone = run("encoders", "join", tmp_path / "reader", "-o", tmp_path / "one")
    alone.is_one_error("two encoders or more", "got 1")


def test_a_name_that_is_none_an_option_that_is_none_and_a_file_that_is_none(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("encoders", "make", "psychic", "-o", out).is_one_error("dlib", "'psychic'")
    run("encoders", "make", "dlib", "-o", out, "--colour", "blue").is_one_error("colour")
    wrong = run("encoders", "make", "clip:model", "-o", out, "--detector", "dlib")
    wrong.is_one_error("VisionConfig has no option 'detector'")
    run("encoders", "make", "onnx:none.onnx", "-o", out).is_one_error("none.onnx")
    assert not out.exists()


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    for i in range(9):
        for image in range(2):
            write_image(tmp_path / f"subjects/s{i}/{image}.png", 10 * i + image, side=20)
    return tmp_path / "subjects"


def test_an_encoder_of_ones_own(run: Run, subjects: Path, tmp_path: Path) -> None:
    (subjects / "s1/0.png").write_bytes(b"no image")
    out, where = tmp_path / "encoder", ("--run", tmp_path / "run")
    own = ("--name", "cats", "--domain", "portraits of cats", "--licence", "CC0-1.0")
    result = run("encoders", "train", subjects, "-o", out, *where, *own, *BRIEF, *SMALL)
    assert result.status == 0, result.err
    assert "left out s1: " in result.out
    encoder = load_encoder(out)
    assert isinstance(encoder, TrainedEncoder)
    assert (encoder.name, encoder.width) == ("cats", 4)
    assert (encoder.domain, encoder.licence) == ("portraits of cats", "CC0-1.0")
    report = json.loads((out / "report.json").read_text())
    assert report["held_out"]["n"] + report["subjects"] == 8
    assert f"of 2 held out, it identifies {report['held_out']['rank1']:.0%}" in result.out


def test_too_few_subjects_to_learn_from(run: Run, subjects: Path, tmp_path: Path) -> None:
    for name in ("s7", "s8"):
        for path in (subjects / name).iterdir():
            path.unlink()
    result = run("encoders", "train", subjects, "-o", tmp_path / "encoder", *BRIEF, *SMALL)
    result.is_one_error("at least 8 subjects", "has 7")
    assert not (tmp_path / "encoder").exists()


def test_images_beside_subjects_train_the_detector(run: Run, subjects: Path, tmp_path) -> None:
    others = write_image(tmp_path / "others/street/1.png", 5).parents[1]
    options = ("--others", others, "--run", tmp_path / "run", *BRIEF, *SMALL)
    assert run("encoders", "train", subjects, "-o", tmp_path / "encoder", *options).status == 0


def test_training_that_is_cut_off_goes_on(
    run: Run, subjects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasynth.engine.trainer import Trainer

    often = ("--optimisation.checkpoint-seconds", 0, "--run", tmp_path / "run")
    words = ("encoders", "train", subjects, "-o", tmp_path / "encoder", *BRIEF, *SMALL, *often)
    with monkeypatch.context() as patch:
        interrupt(patch, Trainer, "_step", calls=3)
        assert run(*words).status == 130
    assert not (tmp_path / "encoder").exists()
    steps: list[int] = []
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda s, loss, i: steps.append(i) or step(s, loss, i))
    assert run(*words).status == 0
    assert steps == [2]
