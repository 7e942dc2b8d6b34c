from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from lorasynth.adapter import Adapter, Factor, Factors
from lorasynth.avatars.bundle import Bundle
from lorasynth.avatars.demo import COLUMNS, draw_sheet, run_demo, write_page
from lorasynth.avatars.drawing import combinations
from lorasynth.condition import TrainedEncoder
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.evaluation.evaluate import best_strength, evaluate
from lorasynth.evaluation.trial import Measured, Trial
from lorasynth.studies.methods import Ridge, mean, mlp, nearest
from lorasynth.synthesizer import Synthesizer

from .conftest import tiny_config

METHODS = [
    "base", "described", "mean", "nearest", "ridge", "mlp", "direct", "diffusion", "trained",
    "real",
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(bundle_run: Path) -> Bundle:
    return Bundle.open(bundle_run / "bundle")


def test_the_table_has_every_method_and_measure(bundle: Bundle, bundle_run: Path) -> None:
    config = tiny_config().measures.evaluation
    result = evaluate(bundle, config, bundle_run / "evaluation")
    assert [row["method"] for row in result["rows"]] == METHODS
    for row in result["rows"]:
        for figure in fields(Measured):
            assert row[figure.name]["lo"] <= row[figure.name]["mean"] <= row[figure.name]["hi"]
        assert 0 <= row["attribute_accuracy"]["mean"] <= 1
        assert 0 <= row["prompt_following"]["mean"] <= 1
        assert row["n"] == config.trial.subjects
    rows = {row["method"]: row for row in result["rows"]}
    paired = {row["method"]: row for row in result["paired"]}
    for figure in ("likeness", "prompt_following", "diversity"):
        less = rows["diffusion"][figure]["mean"] - rows["base"][figure]["mean"]
        assert paired["diffusion - base"][figure]["mean"] == pytest.approx(less, abs=1e-6)
    assert evaluate(bundle, config, bundle_run / "evaluation") == result


def test_nothing_is_measured_twice(
    bundle: Bundle, bundle_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config().measures.evaluation
    result = evaluate(bundle, config, bundle_run / "evaluation")
    monkeypatch.setattr(type(bundle.base), "sample", None)
    assert evaluate(bundle, config, bundle_run / "evaluation") == result


def test_subjects_are_tried_some_at_a_time(bundle: Bundle, tmp_path: Path) -> None:
    config = tiny_config().measures.evaluation.trial
    adapters = bundle.synthesizer.synthesise(
        Trial(bundle.instruments, config).conditions, [str(i) for i in range(config.subjects)]
    )
    whole, parts = (
        Trial(bundle.instruments, replace(config, fleet=fleet), tmp_path).tried("all", adapters)
        for fleet in (config.subjects, 1)
    )
    for name, values in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), values, atol=0.05, rtol=0)
    assert len(list(tmp_path.iterdir())) == 1 + config.subjects


def test_forecasts_are_compared_with_the_trained_adapters(bundle: Bundle, bundle_run: Path) -> None:
    config = tiny_config().measures.evaluation
    result = evaluate(bundle, config, bundle_run / "evaluation")
    rows = {row["method"]: row for row in result["calibration"]}
    assert {"nearest", "ridge", "direct", "diffusion", "ridge with noise"} <= set(rows)
    for name in ("diffusion", "ridge with noise"):
        assert rows[name]["samples"] == config.resamples
        assert rows[name]["spread_over_error"] > 0
    assert rows["ridge"]["spread_over_error"] == 0
    assert {row["method"] for row in result["share_of_trained"]} == {"direct", "diffusion"}


def test_subjects_are_unseen_and_images_are_apart(bundle: Bundle) -> None:
    run = Trial(bundle.instruments, tiny_config().measures.evaluation.trial)
    training = {"/".join(c) for c in combinations("train")}
    for name in run.subjects.ids:
        assert run.subjects.identity(name).combination not in training
        purposes = ("condition", "reference", "evaluation", "training")
        scenes = [scene for purpose in purposes for scene in run.subjects.scenes(name, purpose)]
        assert len(set(scenes)) == len(scenes)


def test_prompts_name_identity_only_where_described(bundle: Bundle) -> None:
    run = Trial(bundle.instruments, tiny_config().measures.evaluation.trial)
    assert not any("skin" in prompt for prompt in run.prompts())
    assert all("skin" in prompt for prompt in run.prompts(described=True))


def test_another_seed_gives_other_subjects(bundle: Bundle) -> None:
    config = tiny_config().measures.evaluation.trial
    first, second = (
        Trial(bundle.instruments, replace(config, seed=seed)).conditions for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_demo_writes_page_image_and_files(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny encoder is not trained, so what it says of faces is chance.
    monkeypatch.setattr(TrainedEncoder, "presence", lambda _, images: torch.ones(len(images)))
    result = run_demo(bundle, tiny_config().measures.evaluation.trial, tmp_path)
    draw_sheet(result, tmp_path / "demo.png", shown=2)
    write_page(result, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert page.count("<img") == 3 * (1 + 2 * len(COLUMNS))
    assert "training, per adapter" in page
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    made = Adapter.load(tmp_path / "loras" / "subject-1.safetensors")
    assert made.metadata.synthesised
    assert made.metadata.base_fingerprint == bundle.base.fingerprint


@pytest.fixture
def linear() -> LatentLibrary:
    """Latents that are a linear function of the conditions."""
    generator = torch.Generator().manual_seed(0)
    conditions = torch.nn.functional.normalize(torch.randn(200, 3, 6, generator=generator), dim=2)
    conditions = conditions[:, :1] + 0.01 * conditions
    weights = torch.randn(6, 4, generator=generator)
    return LatentLibrary(
        ids=tuple(str(i) for i in range(200)),
        latents=conditions.mean(dim=1) @ weights + 1,
        conditions=conditions,
    )


def test_regressions_recover_a_linear_map(linear: LatentLibrary) -> None:
    spread = (mean(linear)(linear.conditions[:, 0]) - linear.latents).square().mean()
    for predictor, share in ((Ridge(linear), 0.01), (mlp(linear), 0.1)):
        error = (predictor(linear.conditions[:, 0]) - linear.latents).square().mean()
        assert error < share * spread


def test_nearest_returns_the_own_adapter_of_a_known_subject(linear: LatentLibrary) -> None:
    found = nearest(linear)(linear.conditions[:, 1])
    assert torch.equal(found, linear.latents)


def test_a_latent_library_survives_saving(linear: LatentLibrary, tmp_path: Path) -> None:
    linear.save(tmp_path / "library")
    loaded = LatentLibrary.load(tmp_path / "library")
    assert loaded.ids == linear.ids
    torch.testing.assert_close(loaded.latents, linear.latents, rtol=1e-3, atol=1e-3)


class Practice(Trial):
    """A trial in which likeness is highest at strength 1.5 and prompts are lost beyond 1.2."""

    def __init__(self) -> None:
        self.tried_at: list[str] = []

    def tried(self, title: str, adapters: Factors | None, *, described: bool = False) -> Measured:
        assert not described
        self.tried_at.append(title)
        strength = 0.0 if adapters is None else float(adapters["module"].B.mean())
        found = [1 - abs(strength - 1.5), 1 - max(0.0, strength - 1.2)]
        like, follows = (torch.full((2,), value) for value in found)
        return Measured(like, like, like, follows, like)


@pytest.mark.parametrize(
    ("strengths", "expected"),
    [((1.0, 1.2, 1.5), 1.2), ((1.0, 1.5, 2.0), 1.0), ((2.0, 1.5), 1.5), ((0.5, 0.85), 0.85)],
)
def test_a_strength_may_not_cost_what_prompts_say(
    strengths: tuple[float, ...], expected: float
) -> None:
    practice = Practice()
    adapters = {"module": Factor(torch.ones(2, 1, 3), torch.ones(2, 4, 1))}
    assert best_strength(practice, "ours", adapters, strengths) == expected
    assert practice.tried_at == ["base", *(f"ours at {s:g}" for s in strengths)]


def test_every_method_gets_the_strength_that_suits_it(bundle: Bundle, bundle_run: Path) -> None:
    config = tiny_config().measures.evaluation
    tuned = replace(config, tuning=2, strengths=(0.5, 1.0))
    rows = evaluate(bundle, tuned, bundle_run / "evaluation")["rows"]
    assert [row["method"] for row in rows] == METHODS
    for row in rows:
        without = row["method"] in ("base", "described", "real")
        assert row["strength"] is None if without else row["strength"] in (0.5, 1.0)
    shipped = evaluate(bundle, config, bundle_run / "evaluation")["rows"]
    strengths = {row["method"]: row["strength"] for row in shipped}
    assert strengths["diffusion"] == bundle.synthesizer.strength
    assert strengths["ridge"] == strengths["trained"] == 1.0


def test_a_synthesizer_samples_at_its_temperature(bundle: Bundle, tmp_path: Path) -> None:
    conditions, names = (
        Trial(bundle.instruments, tiny_config().measures.evaluation.trial).conditions,
        list("abc"),
    )

    def made(of: Synthesizer, seed: int, temperature: float | None = None) -> torch.Tensor:
        return of.latents(conditions, names, seed=seed, temperature=temperature)

    replace(bundle.synthesizer, temperature=0.0).save(tmp_path / "cold", half=False)
    cold = Synthesizer.from_pretrained(tmp_path / "cold")
    assert cold.temperature == 0
    assert made(cold, 0).equal(made(cold, 1))
    warm, other = made(cold, 0, 1.0), made(cold, 1, 1.0)
    assert not warm.equal(other)
    noise = cold.hypernet.draw_noise(0, names)
    torch.testing.assert_close(made(cold, 0, 0.5), cold.hypernet.sample(conditions, noise / 2))


def test_a_synthesizer_hands_out_what_its_strength_says(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny encoder is not trained, so what it says of faces is chance.
    monkeypatch.setattr(TrainedEncoder, "presence", lambda _, images: torch.ones(len(images)))
    stronger = replace(bundle.synthesizer, strength=2 * bundle.synthesizer.strength)
    stronger.save(tmp_path / "stronger")
    again = Synthesizer.from_pretrained(tmp_path / "stronger")
    assert again.strength == stronger.strength
    image = Trial(bundle.instruments, tiny_config().measures.evaluation.trial).condition_images()[0]
    before, after = (made.many([[image]])[0].factors for made in (bundle.synthesizer, stronger))
    for name, factor in before.items():
        torch.testing.assert_close(after[name].B, 2 * factor.B)
        assert after[name].A.equal(factor.A)
