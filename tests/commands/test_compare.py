"""`lorasynth compare` on the tiny world: files of any origin, strengths, a style, CLIP's score."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from command_line import Run
from lorasynth.adapter import Adapter, Factor
from lorasynth.base import BaseModel
from lorasynth.condition import ConditionEncoder, subject_conditions
from lorasynth.evaluation.clip_score import ClipScore
from lorasynth.images import Subject
from lorasynth.images.png import contact_sheet

from .conftest import STRANGERS, SUBJECTS, World, write_image

FEW = ("--images", 2, "--set", "sampling.steps=2", "--device", "cpu")


def test_a_score_is_of_each_image_and_its_own_prompt(clip: Path) -> None:
    score = ClipScore.load(str(clip))
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    prompts = ["a portrait of sks", "a portrait of sks, smiling", "a portrait of sks"]
    found = score(images, prompts)
    assert found.shape == (3,)
    torch.testing.assert_close(score(images[1:2], prompts[1:2]), found[1:2])
    assert not torch.allclose(score(images, prompts[::-1])[1:], found[1:][[1, 0]])


def test_files_strengths_a_style_and_prompts_in_one_table(
    world: World, strangers: Path, clip: Path, run: Run, tmp_path: Path
) -> None:
    loras, out = tmp_path / "loras", tmp_path / "out"
    adapter = Adapter.load(world.lora)
    for i, name in enumerate(STRANGERS):
        adapter.scaled(1.0 + i).save(loras / f"{name}.safetensors", "kohya")
    result = run(
        *("compare", strangers, "-o", out, "--base", world.base),
        *("--encoder", world.encoder, "--second", world.encoder, "--clip", clip),
        *("--lora", f"peer={loras}", "--synthesizer", world.synthesizer),
        *("--strength", 0, "--strength", 1, "--style", f"{world.lora}=0.5"),
        *FEW,
    )
    assert result.status == 0, result.err
    report = json.loads((out / "table.json").read_text())
    found = [(row["contender"], row["strength"]) for row in report["rows"]]
    expected = [(name, float(s)) for name in ("synthesised", "peer") for s in (0, 1)]
    assert found == [("base model", 1.0), *expected]
    base, without, *_ = report["rows"]
    for name in ("likeness", "likeness_second", "prompt_score", "diversity"):
        assert base[name]["lo"] <= base[name]["mean"] <= base[name]["hi"]
        assert without[name]["mean"] == pytest.approx(base[name]["mean"], abs=1e-3)
    assert report["rows"][2]["less_the_first"]["likeness"]["mean"] == pytest.approx(
        report["rows"][2]["likeness"]["mean"] - base["likeness"]["mean"], abs=1e-6
    )
    margin = (
        contact_sheet(torch.zeros(1, 1, 1, 3).byte(), 1, names=["synthesised at 0"]).shape[1] - 1
    )
    for name in STRANGERS:
        with Image.open(out / f"{name}.png") as sheet:
            assert sheet.size == (margin + 2 * 16 + 2, 5 * 16 + 4 * 2)
    assert (out / "strengths.png").is_file()


def test_loras_as_other_programs_lay_them_out(world: World, run: Run, tmp_path: Path) -> None:
    """A folder for each subject as PEFT writes it, and a run's output folder as diffusers does."""
    adapter, out = Adapter.load(world.lora), tmp_path / "out"
    for i, name in enumerate(SUBJECTS):
        adapter.scaled(1.0 + i).save(tmp_path / "peft" / name, "peft")
        adapter.scaled(1.0 + i).save(tmp_path / "files" / f"{name}.safetensors", "kohya")
    one = tmp_path / "dreambooth" / "pytorch_lora_weights.safetensors"
    adapter.save(one, "diffusers")
    write_image(tmp_path / "ann" / "ann" / "0.png", 1)
    arguments = ("--base", world.base, "--encoder", world.encoder, *FEW)
    several = [("--lora", f"{name}={tmp_path / name}") for name in ("peft", "files")]
    result = run("compare", world.subjects, "-o", out, *arguments, *several[0], *several[1])
    assert result.status == 0, result.err
    _, peft, files = json.loads((out / "table.json").read_text())["rows"]
    assert peft["likeness"] == files["likeness"]
    single = ("--lora", f"peer={one.parent}")
    result = run("compare", tmp_path / "ann", "-o", out, *arguments, *single)
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--lora", "peer"), ("NAME=PATH", "'peer'")),
        (("--lora", "peer=nowhere"), ("NAME=PATH", "'peer=nowhere'")),
        (("--style", "ink.safetensors"), ("PATH=STRENGTH",)),
        (("--clip", "nowhere"), ("CLIP model", "nowhere")),
        (("--set", "prompts=[]"), ("a prompt",)),
    ],
)
def test_bad_options_are_one_line(
    world: World, run: Run, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    arguments = ("--base", world.base, "--encoder", world.encoder, *FEW)
    result = run("compare", world.subjects, "-o", tmp_path / "out", *arguments, *options)
    result.is_one_error(*words)


def test_a_image_that_is_shown_does_not_judge(world: World, run: Run, tmp_path: Path) -> None:
    write_image(tmp_path / "people" / "solo" / "0.png", 1)
    arguments = ("--base", world.base, "--encoder", world.encoder, *FEW)
    where = (tmp_path / "people", "-o", tmp_path / "out", *arguments)
    result = run("compare", *where, "--synthesizer", world.synthesizer)
    result.is_one_error("two images", "solo has 1")
    assert run("compare", *where).status == 0


def test_a_missing_file_names_its_subject(world: World, run: Run, tmp_path: Path) -> None:
    Adapter.load(world.lora).save(tmp_path / "loras" / "ann.safetensors")
    arguments = ("--base", world.base, "--encoder", world.encoder, *FEW)
    lora = ("--lora", f"peer={tmp_path / 'loras'}")
    result = run("compare", world.subjects, "-o", tmp_path / "out", *arguments, *lora)
    result.is_one_error("peer has none for ben")


@pytest.mark.parametrize("option", ["--lora", "--style"])
def test_a_file_that_does_not_fit_is_told_before_any_image_is_made(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    adapter, loras = Adapter.load(world.lora), tmp_path / "loras"
    wide = {name: Factor(torch.rand(2, 99), f.B) for name, f in adapter.factors.items()}
    for name in SUBJECTS:
        adapter.save(loras / f"{name}.safetensors")
    Adapter(wide, adapter.metadata).save(loras / "cyd.safetensors")
    monkeypatch.setattr(BaseModel, "sample", lambda *_: pytest.fail("an image was made"))
    given = {"--lora": f"peer={loras}", "--style": f"{loras / 'cyd.safetensors'}=1"}
    arguments = ("--base", world.base, "--encoder", world.encoder, *FEW)
    out = tmp_path / "out"
    result = run("compare", world.subjects, "-o", out, *arguments, option, given[option])
    result.is_one_error("99")


def test_a_subjects_own_images_are_embedded_once(
    world: World, strangers: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(encoder: ConditionEncoder, subject: Subject) -> Tensor:
        seen.append(subject.id)
        return subject_conditions(encoder, subject)

    monkeypatch.setattr("lorasynth.evaluation.compare.subject_conditions", counted)
    arguments = ("--base", world.base, "--encoder", world.encoder, *FEW)
    lora = ("--synthesizer", world.synthesizer, "--strength", 0, "--strength", 1)
    result = run("compare", strangers, "-o", tmp_path / "out", *arguments, *lora)
    assert result.status == 0, result.err
    assert seen == list(STRANGERS)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_no_subject_leads_out_of_the_output(
    world: World, run: Run, tmp_path: Path, kind: str
) -> None:
    names = ("../../escaped", str(tmp_path / "absolute"), "faces/ann", "\x1b[2J")
    photo, source = world.photo.read_bytes(), tmp_path / f"in/people.{kind}"
    source.parent.mkdir()
    if kind == "tar":
        with tarfile.open(source, "w") as tar:
            for name in (f"{name}.{number}.png" for name in names for number in range(2)):
                member = tarfile.TarInfo(name)
                member.size = len(photo)
                tar.addfile(member, io.BytesIO(photo))
    else:
        pq.write_table(pa.table({"id": names, "image": [photo] * len(names)}), source)
    out = tmp_path / "a/b/table"
    arguments = ("--base", world.base, "--encoder", world.encoder, *FEW)
    result = run("compare", source, "-o", out, *arguments)
    assert result.status == 0, result.err
    assert set(tmp_path.rglob("*.png")) == set(out.glob("*.png"))
    assert len(list(out.glob("*.png"))) == len(names) + 1
    assert "\x1b" not in result.out
