"""`lorasynth evaluate` on photos of people: any LoRA files, strengths, a style, CLIP's score."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from command_line import Result, Run
from commands.conftest import SIDE, clip, save_encoder, write_image
from images.test_tars import write
from lorasynth.adapter import Adapter, AdapterMetadata, Factor
from lorasynth.base import BaseModel
from lorasynth.condition import load_encoder
from lorasynth.core.config import read_json
from lorasynth.evaluation.cases import Case, SplitSubjects
from lorasynth.evaluation.clip_score import ClipScore
from lorasynth.evaluation.metrics import Identity, Made, mean_pairwise_distance
from lorasynth.images import Subject, subjects_in

PEOPLE = ("ann", "ben", "cyd")

__all__ = ["clip"]  # a fixture


@dataclass(frozen=True)
class Place:
    """Three people's photos, a base model, an encoder and a LoRA for the base model."""

    base: Path
    people: Path
    encoder: Path
    lora: Path

    def evaluate(self, run: Run, cache: Path, *words: object, people: Path | None = None) -> Result:
        parts = ("--base", self.base, "--encoder", self.encoder, "--cache", cache)
        few = ("--images", 2, "--sampling-steps", 2, "--device", "cpu")
        return run("evaluate", people or self.people, *parts, *few, *words)


@pytest.fixture(scope="module")
def place(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("people")
    for index, name in enumerate(PEOPLE):
        for image in range(2 + index):
            write_image(root / "people" / name / f"{image}.png", 10 * index + image)
    base, stream = BaseModel.load(pipeline_folder), torch.Generator().manual_seed(0)
    targets = base.target_linears(("attn2.to_k", "attn2.to_v"))
    factors = {
        name: Factor(
            torch.randn(2, linear.in_features, generator=stream),
            torch.randn(linear.out_features, 2, generator=stream) / 10,
        )
        for name, linear in targets.items()
    }
    metadata = AdapterMetadata(base_fingerprint=base.fingerprint, trigger_phrase="sks")
    Adapter(factors, metadata).save(root / "me.safetensors")
    encoder = save_encoder(root / "encoder")
    return Place(pipeline_folder, root / "people", encoder, root / "me.safetensors")


def test_copies_of_the_reference_have_a_copy_paste_score_of_one(place: Place) -> None:
    encoder = load_encoder(place.encoder)
    noise = torch.randint(0, 256, (5, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0))
    photos = noise.to(torch.uint8)

    def subject(images: torch.Tensor) -> Subject:
        return Subject(id="x", photos=images, captions=["x"] * len(images))

    case = Case(reference=subject(photos[:1]), judging=subject(photos[1:]), prompts=["x"] * 2)
    metric = Identity([encoder])
    copied = metric(Made(photos[[0, 0]], case))
    assert copied["copy_paste"] == pytest.approx(1, abs=0.01)
    assert copied["reference_similarity"] == pytest.approx(1, abs=1e-4)
    assert copied["diversity"] == pytest.approx(0, abs=1e-4)
    one = Case(reference=subject(photos[:1]), judging=subject(photos[1:2]), prompts=["x"] * 2)
    other = metric(Made(photos[[1, 1]], one))
    assert other["copy_paste"] == pytest.approx(-1, abs=0.01)
    assert other["identity_similarity"] == pytest.approx(1, abs=1e-4)
    real = metric(Made(case.judging.images, case, real=True))
    seen = encoder.embed(case.judging.images)
    pairs = 1 - mean_pairwise_distance(seen[None])
    assert real["identity_similarity"] == pytest.approx(float(pairs), abs=1e-5)


def test_a_score_is_of_each_image_and_its_own_prompt(clip: Path) -> None:
    score = ClipScore.load(str(clip))
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    prompts = ["a portrait of sks", "a portrait of sks, smiling", "a portrait of sks"]
    found = score(images, prompts)
    torch.testing.assert_close(score(images[1:2], prompts[1:2]), found[1:2])
    assert not torch.allclose(score(images, prompts[::-1])[1:], found[1:][[1, 0]])


def test_the_first_images_condition_and_the_others_judge(place: Place) -> None:
    source = subjects_in(place.people)
    subjects = SplitSubjects(source=source, prompts=["a", "b"], references=1, subjects=2)
    assert list(subjects.ids) == ["ann", "ben"]
    case = subjects.case("ben", 3)
    assert (len(case.reference.photos), len(case.judging.photos)) == (1, 2)
    assert list(case.prompts) == ["a", "b", "a"]
    assert case.reference.photos[0].equal(source.load("ben").photos[0])
    assert subjects.load("ben").photos[0].equal(case.reference.photos[0])
    assert subjects.case("ben", 3).digest == case.digest != subjects.case("ann", 3).digest


def test_files_strengths_a_style_and_prompts_in_one_table(
    place: Place, clip: Path, run: Run, tmp_path: Path
) -> None:
    loras, out = tmp_path / "loras", tmp_path / "report.json"
    adapter = Adapter.load(place.lora)
    for i, name in enumerate(PEOPLE):
        adapter.scaled(1.0 + i).save(loras / f"{name}.safetensors", "kohya")
    words = ["--second", place.encoder, "--clip", clip, "--lora", f"peer={loras}", "-o", out]
    words += ["--strength", 0, "--strength", 1, "--style", f"{place.lora}=0.5"]
    words += ["--sheets", tmp_path / "sheets"]
    result = place.evaluate(run, tmp_path / "cache", *words)
    assert result.status == 0, result.err
    report = read_json(out)
    assert report["images"] == "people"
    assert report["config"].keys().isdisjoint({"split", "training_images"})  # of drawn subjects
    found = [(row["method"], row["strength"]) for row in report["rows"]]
    assert found == [("base", None), ("peer at 0", 0.0), ("peer at 1", 1.0), ("real", None)]
    base, without, whole, _ = report["rows"]
    for name in ("identity_similarity", "identity_similarity_second", "prompt_score", "diversity"):
        assert base[name]["lo"] <= base[name]["mean"] <= base[name]["hi"]
        assert without[name]["mean"] == pytest.approx(base[name]["mean"], abs=1e-3)
    paired = {row["method"]: row for row in report["paired"]}["base - peer at 1"]
    less = base["identity_similarity"]["mean"] - whole["identity_similarity"]["mean"]
    assert paired["identity_similarity"]["mean"] == pytest.approx(less, abs=1e-6)
    for name in PEOPLE:
        with Image.open(tmp_path / "sheets" / f"{name}.png") as sheet:
            assert sheet.size[1] == 4 * SIDE + 3 * 2
            assert "synthetic" in sheet.text["Comment"]
    assert out.with_suffix(".png").is_file()


def test_what_one_judging_image_cannot_tell_is_left_out(
    place: Place, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    result = place.evaluate(run, tmp_path / "cache", "--judging", 1, "-o", out)
    assert result.status == 0, result.err
    base, real = read_json(out)["rows"]
    assert "identity_similarity" in base
    assert {"reference_similarity", "shown"} <= set(real)
    assert not {"identity_similarity", "diversity", "copy_paste"} & set(real)
    assert "nan" not in result.out + out.read_text().lower()


def test_loras_as_other_programs_lay_them_out(place: Place, run: Run, tmp_path: Path) -> None:
    """A folder for each subject as PEFT writes it, beside files."""
    adapter, out = Adapter.load(place.lora), tmp_path / "report.json"
    for i, name in enumerate(PEOPLE):
        adapter.scaled(1.0 + i).save(tmp_path / "peft" / name, "peft")
        adapter.scaled(1.0 + i).save(tmp_path / "files" / f"{name}.safetensors", "kohya")
    loras = [w for name in ("peft", "files") for w in ("--lora", f"{name}={tmp_path / name}")]
    result = place.evaluate(run, tmp_path / "cache", *loras, "-o", out)
    assert result.status == 0, result.err
    _, peft, files, _ = read_json(out)["rows"]
    assert peft["identity_similarity"] == files["identity_similarity"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--lora", "peer"), ("NAME=PATH", "'peer'")),
        (("--lora", "peer=nowhere"), ("NAME=PATH", "'peer=nowhere'")),
        (("--style", "ink.safetensors"), ("PATH=STRENGTH",)),
        (("--clip", "nowhere"), ("CLIP model", "nowhere")),
        (("--strength", "much"), ("--strength must be a number", "'much'")),
        (("--contenders", "base,rival"), ("a contender must be one of base", "'rival'")),
        (("--contenders", "nearest"), ("--library", "'nearest'")),
        (("--subjects", "1"), ("--subjects", "1")),
        (("--references", "2"), ("needs 3 images or more", "ann has 2")),
    ],
)
def test_bad_options_are_one_line(
    place: Place, run: Run, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = place.evaluate(run, tmp_path / "cache", *options)
    result.is_one_error(*words)


def test_a_missing_file_names_its_subject(place: Place, run: Run, tmp_path: Path) -> None:
    Adapter.load(place.lora).save(tmp_path / "loras" / "ann.safetensors")
    result = place.evaluate(run, tmp_path / "cache", "--lora", f"peer={tmp_path / 'loras'}")
    result.is_one_error("peer has none for ben")


@pytest.mark.parametrize("option", ["--lora", "--style"])
def test_a_file_that_does_not_fit_is_told_before_any_image_is_made(
    place: Place, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    adapter, loras = Adapter.load(place.lora), tmp_path / "loras"
    wide = {name: Factor(torch.rand(2, 99), f.B) for name, f in adapter.factors.items()}
    for name in PEOPLE:
        adapter.save(loras / f"{name}.safetensors")
    Adapter(wide, adapter.metadata).save(loras / "cyd.safetensors")
    monkeypatch.setattr(BaseModel, "sample", lambda *_: pytest.fail("an image was made"))
    given = {"--lora": f"peer={loras}", "--style": f"{loras / 'cyd.safetensors'}=1"}
    place.evaluate(run, tmp_path / "cache", option, given[option]).is_one_error("99")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_no_subject_leads_out_of_the_output(
    place: Place, run: Run, tmp_path: Path, kind: str
) -> None:
    names = ("../../escaped", str(tmp_path / "absolute"), "faces/ann", "\x1b[2J")
    photo, source = (place.people / "ann/0.png").read_bytes(), tmp_path / f"in/people.{kind}"
    source.parent.mkdir()
    if kind == "tar":
        write(source, {f"{name}.{number}.png": photo for name in names for number in range(2)})
    else:
        pq.write_table(pa.table({"id": [*names] * 2, "image": [photo] * 8}), source)
    sheets = tmp_path / "a/b/sheets"
    result = place.evaluate(run, tmp_path / "cache", "--sheets", sheets, people=source)
    assert result.status == 0, result.err
    assert set(tmp_path.rglob("*.png")) == set(sheets.glob("*.png"))
    assert len(list(sheets.glob("*.png"))) == len(names)
    assert "\x1b" not in result.out
