from dataclasses import replace
from pathlib import Path

import pytest

from command_line import Run
from lorasynth.avatars.bundle import Bundle
from lorasynth.core.atomic import write_json
from lorasynth.core.config import read_json
from lorasynth.studies.repeatability import repeatability_report

from .conftest import tiny_config


def test_the_report_says_what_a_recipe_is_worth(bundle_run: Path) -> None:
    bundle = Bundle.open(bundle_run / "bundle")
    config = replace(tiny_config().measures.evaluation.trial, split="validation")
    report = repeatability_report(bundle.instruments, bundle.recipe, config)
    assert report == {**repeatability_report(bundle.instruments, bundle.recipe, config)} | {
        "seconds": report["seconds"]
    }
    assert -1 <= report["different"] <= report["same"] <= 1
    assert report["lo"] <= report["likeness"] <= report["hi"]
    assert report["config"]["training_images"] == 2
    assert report["seconds"] > 0


def parts_of(bundle: Path) -> list[object]:
    """The options that name a bundle's parts."""
    parts = {
        "base": "base",
        "encoder": "encoders/avatar",
        "second": "encoders/avatar-second",
        "judge": "judge",
    }
    return [w for name, path in parts.items() for w in (f"--{name}", bundle / path)]


def test_the_command(bundle_run: Path, run: Run, tmp_path: Path) -> None:
    where = [*parts_of(bundle_run / "bundle"), "--device", "cpu", "--json", tmp_path / "r.json"]
    brief = [w for s in ("steps=2", "images_per_step=1") for w in ("--set", s)]
    result = run("repeatability", "--subjects", 2, *where, *brief)
    assert result.status == 0
    printed = dict(line.split() for line in result.out.splitlines())
    assert float(printed["same"]) == pytest.approx(read_json(tmp_path / "r.json")["same"], abs=1e-3)
    run("repeatability", "--preset", "best", *where).is_one_error("'best'", "weights2weights")


def test_recipes_are_compared_and_what_is_measured_is_kept(
    bundle_run: Path, run: Run, tmp_path: Path
) -> None:
    bundle, table, out = bundle_run / "bundle", tmp_path / "table.json", tmp_path / "out"
    brief = {"steps": 2, "images_per_step": 1, "targets": ["attn2.to_k", "attn2.to_v"]}
    still = {"learning_rate": 1e-12, "anchored": True}
    write_json(table, {"free": brief, "still": brief | still})
    where = ["recipes", table, "-o", out, "--subjects", 2, *parts_of(bundle), "--device", "cpu"]
    run(*where).is_one_error("--anchor", "'still'")
    anchored = [*where, "--anchor", bundle / "synthesizer"]
    assert run(*anchored).status == 0
    assert (out / "recipes.png").stat().st_size > 1000
    still_report = (out / "still.json").read_text()
    assert read_json(out / "free.json")["anchor"] is None
    assert read_json(out / "still.json")["anchor"]
    write_json(table, {"free": brief | {"steps": 1}, "still": brief | still})
    result = run(*anchored)
    assert "recipe free" in result.err
    assert "recipe still" not in result.err
    assert (out / "still.json").read_text() == still_report
    assert read_json(out / "free.json")["recipe"]["steps"] == 1
    assert run(*anchored, "--images", 1).status == 0
    assert read_json(out / "still.json")["config"]["training_images"] == 1
