"""The studies as commands, on the tiny bundle's parts."""

from pathlib import Path

import pytest

from command_line import Run
from lorasynth.core.atomic import write_json
from lorasynth.core.config import read_json

PLACES = {
    "synthesizer": "synthesizer",
    "library": "library",
    "recipe": "recipe.json",
    "base": "base",
    "encoder": "encoders/avatar",
    "second": "encoders/avatar-second",
    "attributes": "judge",
}
FEW = ("--subjects", 2, "--images", 2, "--training-images", 2, "--sampling-steps", 1)


def parts_of(bundle: Path) -> list[object]:
    """The options that name a bundle's parts."""
    return [word for name, place in PLACES.items() for word in (f"--{name}", bundle / place)]


@pytest.fixture
def parts(bundle_run: Path, tmp_path: Path) -> list[object]:
    """These options, and a folder for what is made."""
    named = parts_of(bundle_run / "bundle")
    return [*named, *FEW, "--cache", tmp_path / "cache", "--device", "cpu", "-o", tmp_path / "out"]


def test_stages_are_contenders(run: Run, tmp_path: Path, parts: list[object]) -> None:
    names = ["trained", "canonical", "compressed", "denoised"]
    out = [tmp_path / "report.json" if word == tmp_path / "out" else word for word in parts]
    result = run("evaluate", *out, "--contenders", ",".join(names))
    assert result.status == 0, result.err
    rows = {row["method"]: row for row in read_json(tmp_path / "report.json")["rows"]}
    assert list(rows) == [*names, "real"]
    means = {name: row["identity_similarity"]["mean"] for name, row in rows.items()}
    assert means["canonical"] == pytest.approx(means["trained"], abs=0.02)


def test_recipes_are_compared_and_what_is_measured_is_kept(
    bundle_run: Path, run: Run, tmp_path: Path, parts: list[object]
) -> None:
    table = tmp_path / "table.json"
    brief = {"steps": 2, "images_per_step": 1, "targets": ["attn2.to_k", "attn2.to_v"]}
    still = {"learning_rate": 1e-12, "anchored": True}
    write_json(table, {"free": brief, "still": brief | still})
    words = ["study", "repeatability", table, *parts]
    run(*words).is_one_error("--regression", "'still'")
    words += ["--regression", bundle_run / "bundle/pretrained"]
    result = run(*words)
    assert result.status == 0, result.err
    reports = read_json(tmp_path / "out/recipes.json")
    assert reports["free"]["anchor"] is None
    assert reports["still"]["anchor"]
    for report in reports.values():
        assert -1 <= report["different"] <= report["same"] <= 1
        assert report["real"]["identity_similarity"]["mean"] <= 1
    write_json(table, {"free": brief | {"steps": 1}, "still": brief | still})
    again = run(*words)
    assert "recipe free" in again.err
    assert "recipe still" not in again.err
    assert read_json(tmp_path / "out/recipes.json")["free"]["recipe"]["steps"] == 1
