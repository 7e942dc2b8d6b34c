from dataclasses import replace
from pathlib import Path

import pytest

from command_line import Run
from lorasynth.config import read_json
from lorasynth.experiments.bundle import Bundle
from lorasynth.experiments.repeatability import repeatability_report

from .conftest import tiny_config


def test_the_report_says_what_a_recipe_is_worth(bundle_run: Path) -> None:
    bundle = Bundle.open(bundle_run / "bundle")
    config = replace(tiny_config().evaluation.trial, split="validation")
    report = repeatability_report(bundle.instruments, bundle.recipe, config)
    assert report == {**repeatability_report(bundle.instruments, bundle.recipe, config)} | {
        "seconds": report["seconds"]
    }
    assert -1 <= report["different"] <= report["same"] <= 1
    assert report["lo"] <= report["likeness"] <= report["hi"]
    assert report["config"]["training_pictures"] == 2
    assert report["seconds"] > 0


def test_the_command(bundle_run: Path, run: Run, tmp_path: Path) -> None:
    bundle = bundle_run / "bundle"
    parts = {"base": "base", "encoder": "encoders/avatar", "second": "encoders/avatar-second"}
    where = [w for name, path in parts.items() for w in (f"--{name}", bundle / path)]
    brief = [w for s in ("steps=2", "pictures_per_step=1") for w in ("--set", s)]
    where += ["--judge", bundle / "judge", "--json", tmp_path / "r.json", "--device", "cpu"]
    result = run("repeatability", "--subjects", 2, *where, *brief)
    assert result.status == 0
    printed = dict(line.split() for line in result.out.splitlines())
    assert float(printed["same"]) == pytest.approx(read_json(tmp_path / "r.json")["same"], abs=1e-3)
    run("repeatability", "--preset", "best", *where).is_one_error("'best'", "weights2weights")
