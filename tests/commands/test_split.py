"""What learns takes the split `train`, and is not tested on what it has learned from."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from command_line import Run
from lorasynth.base import BaseModel
from lorasynth.codec import load_codec
from lorasynth.edit import LatentLibrary
from lorasynth.evaluation.report import STRENGTHS
from lorasynth.hypernet import library_data
from lorasynth.library import Library

from .conftest import STRANGERS, World, train_arguments, tune

SPLIT = {"ann": "train", "ben": "test", "cyd": "train"}


@pytest.fixture
def library(world: World, tmp_path: Path) -> Path:
    """The world's library with a column that says who is held out."""
    whole = Library.open(world.library)
    made = Library.create(
        tmp_path / "library", whole.layout, whole.info.base_fingerprint, gauge=whole.info.gauge
    )
    rows = [{"id": name, "split": SPLIT[name]} for name in whole.ids]
    made.append(whole.factors(range(len(whole))), rows)
    [column] = whole.columns
    made.attach(column, whole.column(column))
    return made.path


def fitted(run: Run, library: Path, out: Path, *options: object) -> Path:
    arguments = ["fit", "pca", library, "-o", out, "--run", out.parent / "fitting"]
    result = run(*arguments, "--latents", 1, "--device", "cpu", *options)
    assert result.status == 0, result.err
    return out


def test_the_mean_of_what_is_fitted_is_that_of_the_training_split(
    library: Path, run: Run, tmp_path: Path
) -> None:
    codec = load_codec(fitted(run, library, tmp_path / "codec"))
    vectors = Library.open(library).all_vectors()
    expected = vectors[[0, 2]].mean(dim=0)
    torch.testing.assert_close(codec.decode(torch.zeros(1, 1))[0], expected, atol=1e-5, rtol=1e-4)


def test_edits_learn_from_the_training_split(library: Path, run: Run, tmp_path: Path) -> None:
    codec = load_codec(fitted(run, library, tmp_path / "codec"))
    assert LatentLibrary.open(library, codec).ids == ("ann", "cyd")


def test_a_library_without_splits_says_so(world: World, run: Run, tmp_path: Path) -> None:
    arguments = ["fit", "pca", world.library, "-o", tmp_path / "codec", "--run", tmp_path / "run"]
    result = run(*arguments, "--latents", 2, "--device", "cpu")
    assert "no column 'split'" in result.err
    assert "all 3 adapters" in result.err


def test_subjects_that_were_learned_from_are_no_test(
    world: World, run: Run, tmp_path: Path
) -> None:
    arguments = ["evaluate", world.subjects, "--encoder", world.encoder]
    where = ["--synthesizer", world.synthesizer, "--base", world.base, "--device", "cpu"]
    run(*arguments, *where).is_one_error("has learned from 3 of these 3", "'ann'", "held-out")


def test_a_strength_is_chosen_on_a_sister_of_the_base_model(
    world: World, strangers: Path, run: Run, tmp_path: Path
) -> None:
    """As on the distilled sister of the base model that was trained on."""
    sister = shutil.copytree(world.base, tmp_path / "sister")
    tune(sister)
    people = shutil.copytree(strangers, tmp_path / "people")
    shutil.copytree(people / STRANGERS[0], people / "gus")
    arguments = ["evaluate", people, "--encoder", world.encoder, "--base", sister, "--tune", 2]
    arguments += ["--synthesizer", world.synthesizer, "--images", 2, "--sampling-steps", 1]
    arguments += ["--cache", tmp_path / "cache", "-o", tmp_path / "report.json", "--device", "cpu"]
    run(*arguments).is_one_error("must be used with the base model that it was made for")
    assert run(*arguments, "--allow-other-base").status == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["base_fingerprint"] == BaseModel.load(sister).fingerprint
    assert report["subjects"] == [STRANGERS[-1], "gus"]
    [chosen] = [row["strength"] for row in report["rows"] if row["method"] == "synthesised"]
    assert chosen in STRENGTHS


def test_latents_are_computed_once_for_a_library(
    world: World, library: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = load_codec(fitted(run, library, tmp_path / "codec"))
    opened = Library.open(library)
    before = library_data.latents_of(opened, codec)
    monkeypatch.setattr(type(codec), "encode", None)
    again = Library.open(library)
    torch.testing.assert_close(library_data.latents_of(again, codec), before, rtol=0, atol=0)
    part = library_data.latents_of(again.training(), codec)
    torch.testing.assert_close(part, before[[0, 2]], rtol=0, atol=0)
    monkeypatch.undo()
    more = opened.factors([0])
    again.append(more, [{"id": "dan", "split": "train"}])
    assert len(library_data.latents_of(again, codec)) == 4


def test_train_reads_no_weights_of_the_base_model(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the pipeline was loaded")

    monkeypatch.setattr("lorasynth.base.opening.load_pipeline", read)
    arguments = train_arguments(world, tmp_path / "synthesizer", tmp_path / "run")
    assert run(*arguments, "--device", "cpu").status == 0
