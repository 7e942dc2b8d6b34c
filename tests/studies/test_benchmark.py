"""The benchmark on avatars: all contenders, the attribute metric, nothing made twice."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from command_line import Run
from lorasynth.adapter import Adapter
from lorasynth.avatars.benchmark import TestAvatars
from lorasynth.avatars.bundle import Bundle
from lorasynth.avatars.demo import COLUMNS, write_demo
from lorasynth.avatars.drawing import combinations
from lorasynth.core.cache import Cache
from lorasynth.core.config import read_json
from lorasynth.evaluation.contenders import contenders_of
from lorasynth.evaluation.report import tuned
from lorasynth.synthesizer import Synthesizer

from .conftest import tiny_config
from .test_studies import parts_of

CONFIG = tiny_config().measures.evaluation
METHODS = [
    "base", "described", "mean", "nearest", "ridge", "mlp", "direct", "synthesised", "trained",
    "real",
]  # fmt: skip
FIGURES = {
    *("identity_similarity", "reference_similarity", "copy_paste", "diversity", "shown"),
    *("identity_similarity_second", "reference_similarity_second", "copy_paste_second"),
    *("attribute_accuracy", "prompt_following"),
}


@pytest.fixture(scope="module")
def bundle(bundle_run: Path) -> Bundle:
    return Bundle.open(bundle_run / "bundle")


@pytest.fixture
def cache(bundle_run: Path) -> Cache:
    """That of the bundle's maker, which has measured it."""
    return Cache(bundle_run / "evaluation")


def test_the_table_has_every_method_and_metric(bundle: Bundle, cache: Cache) -> None:
    result = bundle.evaluate(CONFIG, cache, resamples=2)
    assert [row["method"] for row in result["rows"]] == METHODS
    for row in result["rows"]:
        assert {name for name, value in row.items() if isinstance(value, dict)} == FIGURES
        for name in FIGURES:
            assert row[name]["lo"] <= row[name]["mean"] <= row[name]["hi"]
        assert row["n"] == CONFIG.subjects
    rows = {row["method"]: row for row in result["rows"]}
    paired = {row["method"]: row for row in result["paired"]}
    for figure in ("identity_similarity", "prompt_following", "diversity"):
        less = rows["synthesised"][figure]["mean"] - rows["base"][figure]["mean"]
        found = paired["synthesised - base"][figure]["mean"]
        assert found == pytest.approx(less, abs=1e-6)
    assert {row["method"] for row in result["share_of_trained"]} == {"direct", "synthesised"}


def test_nothing_is_measured_twice(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = bundle.evaluate(CONFIG, cache, resamples=2)
    monkeypatch.setattr(type(bundle.base), "sample", None)
    assert bundle.evaluate(CONFIG, cache, resamples=2) == result


def test_subjects_are_measured_some_at_a_time(bundle: Bundle, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    whole, parts = (
        bundle.benchmark(replace(CONFIG, fleet=fleet), cache) for fleet in (CONFIG.subjects or 3, 1)
    )
    found = []
    for benchmark in (whole, parts):
        [one] = contenders_of(bundle.parts, benchmark.subjects, cache, ["synthesised"])
        found.append(benchmark.measure(one).figures)
    for name in FIGURES - {"copy_paste", "copy_paste_second"}:  # divided by nearly nothing
        torch.testing.assert_close(found[1][name], found[0][name], atol=0.05, rtol=0)
    assert len(list(tmp_path.iterdir())) == 1 + (CONFIG.subjects or 3)


def test_forecasts_are_compared_with_the_trained_adapters(bundle: Bundle, cache: Cache) -> None:
    result = bundle.evaluate(CONFIG, cache, resamples=2)
    rows = {row["method"]: row for row in result["calibration"]}
    assert {"nearest", "ridge", "direct", "synthesised", "ridge with noise"} <= set(rows)
    for name in ("synthesised", "ridge with noise"):
        assert rows[name]["samples"] == 2
        assert rows[name]["spread_over_error"] > 0
    assert rows["ridge"]["spread_over_error"] == 0


def test_subjects_are_unseen_and_images_are_apart() -> None:
    subjects, training = TestAvatars.of(CONFIG, 64), {"/".join(c) for c in combinations("train")}
    for name in subjects.ids:
        assert subjects.identity(name).combination not in training
        purposes = ("condition", "reference", "evaluation", "training")
        scenes = [scene for purpose in purposes for scene in subjects.scenes(name, purpose)]
        assert len(set(scenes)) == len(scenes)
        case = subjects.case(name, 2)
        assert not any("skin" in prompt for prompt in case.prompts)
        assert all("skin" in prompt for prompt in case.described)
    other = TestAvatars.of(replace(CONFIG, seed=1), 64)
    assert subjects.case(subjects.ids[0], 2).digest != other.case(other.ids[0], 2).digest


def test_every_method_gets_the_strength_that_suits_it(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(tuned, strengths=(0.5, 1.0))
    monkeypatch.setattr("lorasynth.avatars.bundle.tuned", few)
    rows = bundle.evaluate(CONFIG, cache, tune=2, resamples=2)["rows"]
    for row in rows:
        without = row["method"] in ("base", "described", "real")
        assert row["strength"] is None if without else row["strength"] in (0.5, 1.0)
    shipped = bundle.evaluate(CONFIG, cache, resamples=2)["rows"]
    strengths = {row["method"]: row["strength"] for row in shipped}
    assert strengths["synthesised"] == bundle.synthesizer.strength
    assert strengths["ridge"] == strengths["trained"] == 1.0


def test_refined_adapters_start_from_what_is_synthesised(bundle: Bundle, tmp_path: Path) -> None:
    run = bundle.benchmark(CONFIG)
    names = ["direct", "refined"]
    found = contenders_of(bundle.parts, run.subjects, Cache(tmp_path), names)
    direct, refined = (one.factors(run.cases, torch.float32) for one in found)
    assert direct is not None
    assert refined is not None
    assert direct.keys() == refined.keys()
    moved = {
        tuple(
            not torch.allclose(a, b, rtol=1e-4, atol=1e-6)
            for a, b in zip(factor.B, direct[name].B, strict=True)
        )
        for name, factor in refined.items()
    }
    assert len(moved) == 1  # a subject's adapter is refined in all modules, or was best as it was


def test_the_command_measures_avatars_as_the_bundle_does(
    bundle: Bundle, bundle_run: Path, cache: Cache, run: Run, tmp_path: Path
) -> None:
    folder, out = bundle_run / "bundle", tmp_path / "report.json"
    parts = [*parts_of(folder), "--regression", folder / "pretrained"]
    few = ["--subjects", 3, "--images", 2, "--training-images", 2, "--sampling-steps", 2]
    where = ["--cache", cache.folder, "--device", "cpu", "-o", out]
    result = run("evaluate", *parts, *few, *where)
    assert result.status == 0, result.err
    expected = bundle.evaluate(CONFIG, cache)
    assert read_json(out)["rows"] == expected["rows"]
    assert "synthesised" in result.out


def test_demo_writes_page_image_and_files(bundle: Bundle, tmp_path: Path) -> None:
    page = write_demo(bundle, CONFIG, tmp_path).read_text()
    assert page.count("<img") == 3 * (1 + 2 * len(COLUMNS))
    assert "training, per adapter" in page
    made = Adapter.load(tmp_path / "loras" / "subject-1.safetensors")
    assert made.metadata.synthesised
    assert made.metadata.base_fingerprint == bundle.base.fingerprint


def test_a_synthesizer_samples_at_its_temperature(bundle: Bundle, tmp_path: Path) -> None:
    cases = bundle.benchmark(CONFIG).cases
    conditions, names = bundle.synthesizer.conditions([c.reference for c in cases]), list("abc")

    def made(of: Synthesizer, seed: int, temperature: float | None = None) -> torch.Tensor:
        return of.latents(conditions, names, seed=seed, temperature=temperature)

    replace(bundle.synthesizer, temperature=0.0).save(tmp_path / "cold", half=False)
    cold = Synthesizer.from_pretrained(tmp_path / "cold")
    assert cold.temperature == 0
    assert made(cold, 0).equal(made(cold, 1))
    assert not made(cold, 0, 1.0).equal(made(cold, 1, 1.0))
    noise = cold.hypernet.draw_noise(0, names)
    torch.testing.assert_close(made(cold, 0, 0.5), cold.hypernet.sample(conditions, noise / 2))


def test_a_synthesizer_hands_out_what_its_strength_says(bundle: Bundle, tmp_path: Path) -> None:
    stronger = replace(bundle.synthesizer, strength=2 * bundle.synthesizer.strength)
    stronger.save(tmp_path / "stronger")
    again = Synthesizer.from_pretrained(tmp_path / "stronger")
    assert again.strength == stronger.strength
    image = bundle.benchmark(CONFIG).cases[0].reference.images[0]
    before, after = (made.many([[image]])[0].factors for made in (bundle.synthesizer, stronger))
    for name, factor in before.items():
        torch.testing.assert_close(after[name].B, 2 * factor.B)
        assert after[name].A.equal(factor.A)
