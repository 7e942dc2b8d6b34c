"""`lorasynth study w2w` on files of weights2weights' form, and what serves an imported library."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Run, call
from lorasynth.adapter import Adapter
from lorasynth.condition import AttributeEncoder, AttributesConfig
from lorasynth.hypernet import LatentDiffusion
from lorasynth.hypernet.train import train
from lorasynth.library import Library
from lorasynth.library.w2w import import_w2w
from tiny_pipelines import shrunk_stable_diffusion
from w2w_files import imitate_w2w

from .conftest import DENOISER, SIDE, TRAINING, save_encoder, write_image

SHRINK, ROWS = 64, 24
STAGES = ("library", "conditions.json", "codec", "synthesizer", "loras", "evaluation")
CHOICES = (
    *("--generated.images", 2, "--generated.steps", 1, "--latents", 3),
    *("--optimisation.steps", 2, "--optimisation.batch", 2),
    *("--tests.subjects", 2, "--tests.images", 2, "--tests.sampling-steps", 1),
)


@dataclass(frozen=True)
class Published:
    """weights2weights' files in small, and the base model and encoder for them."""

    files: Path
    base: Path
    encoder: Path

    def arguments(self, run: Path, *choices: object) -> list[object]:
        parts = ["--base", self.base, "--encoder", self.encoder, "--device", "cpu"]
        stated = dict(zip([*CHOICES, *choices][::2], [*CHOICES, *choices][1::2], strict=True))
        words = [word for option in stated.items() for word in option]
        return ["study", "w2w", self.files, "-o", run, *parts, *words]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    shrunk_stable_diffusion(SHRINK).save_pretrained(root / "base")
    imitate_w2w(root / "files", ROWS, SHRINK)
    return Published(root / "files", root / "base", save_encoder(root / "encoder"))


@pytest.fixture(scope="module")
def finished(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "run"
    assert call(published.arguments(folder)) == 0
    return folder


def test_every_stage_leaves_its_output(finished: Path) -> None:
    out = finished / "out"
    assert {path.name for path in out.iterdir()} == set(STAGES)
    stated = json.loads((out / "conditions.json").read_text())
    library = Library.open(out / "library")
    assert library.column(stated["column"]).shape == (ROWS, 2, 6)
    assert set(stated["split"]) <= {"train", "validation", "test"}
    report = json.loads((out / "evaluation" / "report.json").read_text())
    names = [row["method"] for row in report["rows"]]
    assert names == ["base", "synthesised", "own", "mean", "nearest", "ridge", "mlp", "real"]
    held_out = {i for i, s in zip(library.ids, stated["split"], strict=True) if s == "test"}
    assert len(report["subjects"]) == 2
    assert held_out.issuperset(report["subjects"])
    for name in report["subjects"]:
        made = Adapter.load(out / "loras" / f"{name}.safetensors")
        assert made.layout == library.layout
        assert made.metadata.trigger_phrase == "sks person"
        assert made.metadata.synthesised
        assert (out / "evaluation" / f"{name}.png").is_file()


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_second_run_does_nothing_and_a_deleted_stage_is_made_again(
    published: Published, finished: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    codec = stamps(folder / "out" / "codec")
    made = folder / "out" / "loras"
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    shutil.rmtree(made)
    plan = run(*published.arguments(folder), "--plan")
    assert [line.split()[0] for line in plan.out.splitlines() if "to do" in line] == ["loras"]
    assert not made.exists()
    result = run(*published.arguments(folder))
    assert result.status == 0, result.err
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    assert stamps(folder / "out" / "codec") == codec


def test_a_plan_leaves_nothing_behind(published: Published, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for choices in ((), ("--latents", 4)):
        plan = run(*published.arguments(folder, *choices), "--plan")
        assert [line.split() for line in plan.out.splitlines()] == [[s, "to", "do"] for s in STAGES]
        assert not folder.exists()


@pytest.mark.long
def test_prompts_are_scored_by_clip(
    published: Published, finished: Path, clip: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    result = run(*published.arguments(folder), "--clip", clip)
    assert result.status == 0, result.err
    report = json.loads((folder / "out" / "evaluation" / "report.json").read_text())
    assert all("prompt_score" in row for row in report["rows"][:-1])


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_any_stage_it_goes_on(
    published: Published, finished: Path, tmp_path: Path, stage: str
) -> None:
    """Killed as soon as the stage begins, after what precedes it was made by another process."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in STAGES[STAGES.index(stage) :]:
        made = folder / "out" / name
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    for leftover in folder.glob("hypernet*"):
        leftover.unlink()
    words = [sys.executable, "-m", "lorasynth", *map(str, published.arguments(folder))]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as killed:
        for line in killed.stderr or ():
            if line.startswith(f"stage {stage}"):
                killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "out" / stage).exists()
    assert call(published.arguments(folder)) == 0
    again, before = (run / "out" / "evaluation" / "report.json" for run in (folder, finished))
    assert again.read_bytes() == before.read_bytes()
    for made in (finished / "out" / "loras").iterdir():
        assert (folder / "out" / "loras" / made.name).read_bytes() == made.read_bytes()


def test_other_choices_need_another_folder(published: Published, finished: Path, run: Run) -> None:
    result = run(*published.arguments(finished, "--latents", 4))
    result.is_one_error("latents", "choose another folder")


@pytest.mark.long
def test_other_test_subjects_or_judges_are_tried_anew(
    published: Published, finished: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    hypernet = stamps(folder / "out" / "synthesizer")
    more = published.arguments(folder, "--tests.subjects", 3)
    plan = run(*more, "--plan")
    to_do = [line.split()[0] for line in plan.out.splitlines() if "to do" in line]
    assert to_do == ["loras", "evaluation"]
    result = run(*more)
    assert result.status == 0, result.err
    report = json.loads((folder / "out" / "evaluation" / "report.json").read_text())
    assert len(report["subjects"]) == len(list((folder / "out" / "loras").iterdir())) == 3
    assert stamps(folder / "out" / "synthesizer") == hypernet
    assert "to do" not in run(*more, "--plan").out
    assert "loras           to do" in run(*more, "--second", published.encoder, "--plan").out


def test_the_hypernetwork_is_trained_where_the_base_model_is(
    published: Published, finished: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "run", []
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "out" / "synthesizer")

    def noted(*given: Any, device: torch.device, **more: Any) -> LatentDiffusion:
        seen.append(device)
        return train(*given, device=device, **more)

    monkeypatch.setattr("lorasynth.studies.w2w.train_hypernet", noted)
    result = run(*published.arguments(folder), "--only", "synthesizer")
    assert result.status == 0, result.err
    assert seen == [torch.device("cpu")]


def test_test_subjects_are_shown_to_both_encoders(
    published: Published, finished: Path, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    blind = save_encoder(tmp_path / "blind", face=False)
    result = run(*published.arguments(tmp_path / "run"), "--second", blind)
    assert result.status == 2
    assert "must be shown by their images, but 0 of" in result.err


def test_images_without_a_face_are_refused_before_all_are_made(
    published: Published, run: Run, tmp_path: Path
) -> None:
    blind = save_encoder(tmp_path / "blind", face=False)
    result = run(*replace(published, encoder=blind).arguments(tmp_path / "run"))
    assert result.status == 2
    assert "must show what the encoder tiny-one knows" in result.err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run/out").iterdir()] == ["library"]


def test_an_encoder_of_facts_alone_is_refused_before_anything_is_made(
    published: Published, run: Run, tmp_path: Path
) -> None:
    facts = AttributesConfig(attributes={"hat": ["none", "top"]})
    AttributeEncoder(facts).save(tmp_path / "facts")
    recipe = replace(published, encoder=tmp_path / "facts").arguments(tmp_path / "run")
    run(*recipe).is_one_error("looks at no images")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (("--tests.subjects", "1"), ("greater than or equal to 2",)),
        (("--only", "decoder"), ("a stage must be one of library", "'decoder'")),
        (("--images", "nowhere"), ("--images", "nowhere")),
        (("--codec", "jpeg"), ("a codec must be one of", "'jpeg'")),
    ],
)
def test_bad_choices_are_one_line(
    published: Published, run: Run, tmp_path: Path, choice: tuple[str, str], words: tuple[str, ...]
) -> None:
    result = run(*published.arguments(tmp_path / "run"), *choice)
    assert result.status == 2
    for word in words:
        assert word in result.err.strip().splitlines()[-1]
    assert "Traceback" not in result.err


def test_a_base_model_of_other_widths_is_refused(
    published: Published, pipeline_folder: Path, run: Run, tmp_path: Path
) -> None:
    arguments = published.arguments(tmp_path / "run")
    arguments[arguments.index("--base") + 1] = pipeline_folder
    result = run(*arguments)
    assert result.status == 2
    assert "made for another base model" in result.err


def test_real_images_take_the_place_of_made_ones(
    published: Published, run: Run, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    import_w2w(str(published.files), library)
    for index, name in enumerate(Library.open(library).ids):
        for image in range(3):
            write_image(tmp_path / "people" / name / f"{image}.png", 10 * index + image, SIDE)
    result = run(*published.arguments(tmp_path / "run"), "--images", tmp_path / "people")
    assert result.status == 0, result.err
    assert "synthesised" in result.out


def test_an_imported_library_is_embedded_and_trained_on(
    published: Published, run: Run, tmp_path: Path
) -> None:
    library, codec = tmp_path / "library", tmp_path / "codec"
    assert run("import", "w2w", published.files, "-o", library).status == 0
    fit = ("fit", "pca", library, "-o", codec, "--latents", 3, "--run", tmp_path / "fit")
    assert run(*fit, "--device", "cpu").status == 0
    parts = ("--encoder", published.encoder, "--base", published.base, "--device", "cpu")
    sets = [*TRAINING, *DENOISER]
    train = ("train", library, "--codec", codec, "-o", tmp_path / "synthesizer", *parts, *sets)
    run(*train, "--run", tmp_path / "run").is_one_error("column")
    few = ("--generated.images", 1, "--generated.steps", 1)
    result = run("library", "embed", library, *parts, *few)
    assert result.status == 0, result.err
    assert f"{ROWS} subjects embedded" in result.out
    assert run(*train, "--run", tmp_path / "run").status == 0
