"""The paper's claims, each looked into once on the tiny bundle."""

import json
from pathlib import Path

import pytest

from command_line import Run
from lorasynth.studies.finding import CLAIMS, difference, in_order, interval, judged


def test_every_claim_is_in_the_report() -> None:
    assert sorted(in_order()) == CLAIMS.names()


def test_intervals_are_over_subjects_and_spreads_over_seeds() -> None:
    first, second = [[0.1, 0.3], [0.3, 0.5]], [[0.0, 0.2], [0.2, 0.4]]
    found = interval(first)
    assert found["mean"] == pytest.approx(0.3)
    assert found["std_over_seeds"] == pytest.approx(0.2 / 2**0.5)
    assert found["lo"] == pytest.approx(0.1)  # both seeds the first, both subjects too
    paired = difference(first, second)
    assert (paired["lo"], paired["hi"]) == pytest.approx((0.1, 0.1))


def test_verdicts() -> None:
    assert judged(holds=True) == "holds"
    assert judged(holds=False, partly=True) == "holds partly"
    assert judged(holds=False) == "does not hold here"


@pytest.mark.long
def test_a_smoke_run_writes_a_report_without_verdicts_and_resumes(
    bundle_run: Path, run: Run, tmp_path: Path
) -> None:
    out, folder = tmp_path / "report", tmp_path / "run"
    where = ("--bundle", bundle_run / "bundle", "-o", out, "--run", folder)
    arguments = ("study", "reproduce", "--smoke", *where)
    result = run(*arguments, "--device", "cpu")
    assert result.status == 0, result.err
    report = json.loads((out / "report.json").read_text())
    assert len(report) == len(in_order())
    for claim in report:
        assert claim["verdict"] == "smoke, no verdict"
        assert claim["seeds"] in ([], [0, 1])
        assert claim["values"]
    assert [claim["seeds"] for claim in report if claim["section"] == "4.4"] == [[0, 1]]
    text = (out / "report.md").read_text()
    assert "no verdicts" in text
    for image in ("norms", "spectrum", "spaces", "gradient-flow", "adalora", "cost", "edits"):
        assert (out / f"{image}.png").is_file()
    cells = {path: path.stat().st_mtime_ns for path in folder.rglob("*-*.json")}
    assert run(*arguments, "--device", "cpu").status == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*-*.json")} == cells


def test_a_library_that_is_given_is_studied_in_place_of_a_new_one(
    bundle_run: Path, run: Run, tmp_path: Path
) -> None:
    arguments: list[str | Path] = ["study", "reproduce", "--smoke", "--claim", "linearity"]
    arguments += ["--device", "cpu", "--bundle", bundle_run / "bundle"]
    arguments += ["--adapters", bundle_run / "out" / "library"]
    arguments += ["--run", tmp_path / "run", "-o", tmp_path / "report"]
    run(*arguments).is_one_error("must have 16 adapters, 4 of them held out, but has 6")
    fewer = ["--known", 4, "--compared", 4, "--held-out", 2, "--sizes", 3, 4]
    result = run(*arguments, *fewer, "--note", "On a quiet machine.")
    assert result.status == 0, result.err
    text = (tmp_path / "report" / "report.md").read_text()
    assert "On a quiet machine.\n" in text
    assert "*Rule.* Holds: PCA falls behind a deep VAE" in text
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    rows = report[0]["values"]["FVU on held-out adapters"]
    assert [row["size"] for row in rows] == [3, 4]
    assert not list((tmp_path / "run").rglob("library-ours"))
