"""One subject that cannot be used does not end the work on the others."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import Run
from lorasynth import Synthesizer
from lorasynth.adapter import Adapter
from lorasynth.condition import ConditionEncoder, TrainedEncoder
from lorasynth.core.config import read_json
from lorasynth.core.learned import learned_from

from .conftest import PRETRAIN, SIDE, SUBJECTS, World


@pytest.fixture
def people(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world's subjects, and one whose photos are black; the encoder sees nothing in black."""

    def presence(_: TrainedEncoder, images):
        return (images.float().mean(dim=(1, 2, 3)) > 5).float()

    monkeypatch.setattr(TrainedEncoder, "presence", presence)
    monkeypatch.setattr(TrainedEncoder, "look", ConditionEncoder.look)
    folder = tmp_path / "people"
    shutil.copytree(world.subjects, folder)
    (folder / "bob").mkdir()
    for number in range(2):
        black = Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8))
        black.save(folder / "bob" / f"{number}.png")
    return folder


def test_synth_writes_the_others_and_says_who_is_left_out(
    world: World, people: Path, run: Run, tmp_path: Path
) -> None:
    arguments = ("synth", people, "-o", tmp_path / "out", "--synthesizer", world.synthesizer)
    result = run(*arguments)
    assert result.status == 0, result.err
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(SUBJECTS)
    assert "left out bob: a reference photo must show" in result.err
    assert "3 subjects written, 1 left out" in result.err
    strict = run(*arguments[:2], "-o", tmp_path / "strict", *arguments[4:], "--strict")
    assert strict.status == 2
    assert "bob" in strict.err
    assert not (tmp_path / "strict").exists()


def test_a_photo_that_shows_nothing_gives_way_to_the_others_of_a_folder(
    world: World, people: Path, run: Run, tmp_path: Path
) -> None:
    ann, where = people / "ann", ("--synthesizer", world.synthesizer)
    assert run("synth", ann, "-o", tmp_path / "plain.safetensors", *where).status == 0
    shutil.copy(people / "bob" / "0.png", ann / "black.png")
    result = run("synth", ann, "-o", tmp_path / "me.safetensors", *where)
    assert result.status == 0, result.err
    assert "passed over: a reference photo must show" in result.err
    names = ("plain", "me")
    plain, me = (Adapter.load(tmp_path / f"{name}.safetensors").to_vector() for name in names)
    assert me.equal(plain)
    for words in ((ann, "--strict"), sorted(ann.glob("*.png"))):
        result = run("synth", *words, "-o", tmp_path / "x.safetensors", *where)
        assert result.status == 2
        assert "black.png" in result.err.splitlines()[-1]


def test_synth_fails_where_nobody_can_be_used(
    world: World, people: Path, run: Run, tmp_path: Path
) -> None:
    for name in SUBJECTS:
        shutil.rmtree(people / name)
    shutil.copytree(people / "bob", people / "rob")
    arguments = ("synth", people, "-o", tmp_path / "out", "--synthesizer", world.synthesizer)
    result = run(*arguments)
    assert result.status == 2
    assert "left out rob" in result.err
    assert "none of the 2 has" in result.err.splitlines()[-1]


def test_pretraining_leaves_out_who_shows_nothing(
    world: World, people: Path, run: Run, tmp_path: Path
) -> None:
    out, work = tmp_path / "pretrained", tmp_path / "run"
    where = [people, "--base", world.base, "--device", "cpu", "--run", work]
    arguments = ["--encoder", world.encoder, *PRETRAIN]
    result = run("pretrain", *where, "-o", out, *arguments)
    assert result.status == 0, result.err
    assert "trained on 3 subjects, 1 left out" in result.out
    assert list(read_json(work / "encoded.failures.json")) == ["bob"]
    assert Synthesizer.from_pretrained(out).learned == learned_from(SUBJECTS)
    encoded = sorted((work / "encoded").iterdir())
    again = run("pretrain", *where, "-o", tmp_path / "again", *arguments)
    assert sorted((work / "encoded").iterdir()) == encoded  # nothing is encoded a second time
    assert "trained on 3 subjects, 1 left out" in again.out
    run("pretrain", *where, "-o", out, *arguments).is_one_error("--overwrite", str(out))
    assert run("pretrain", *where, "-o", out, *arguments, "--overwrite").status == 0
    where[-1] = tmp_path / "other"
    strict = run("pretrain", *where, "-o", tmp_path / "strict", *arguments, "--strict")
    assert strict.status == 2
    assert "'bob'" in strict.err


def test_a_synthesizer_says_whom_it_knows(world: World, run: Run, tmp_path: Path) -> None:
    arguments = ("synth", world.photo, "-o", tmp_path / "me.safetensors")
    result = run(*arguments, "--synthesizer", world.synthesizer)
    assert "knows images like those that it was trained on" in result.err


def test_a_photo_of_something_else_is_refused_with_what_to_do(
    world: World, people: Path, run: Run, tmp_path: Path
) -> None:
    photo = people / "bob" / "0.png"
    arguments = ("synth", photo, "-o", tmp_path / "me.safetensors")
    result = run(*arguments, "--synthesizer", world.synthesizer)
    assert result.status == 2
    line = result.err.strip().splitlines()[-1]
    said = ("images like those that it was trained on", "lorasynth pretrain", "docs/quickstart.md")
    assert all(words in line for words in (*said, str(photo))), line
