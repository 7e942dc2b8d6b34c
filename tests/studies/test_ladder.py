from pathlib import Path

import pytest

from command_line import Run
from lorasynth.core.config import read_json


def test_every_rung_is_measured_and_drawn(bundle_run: Path, run: Run, tmp_path: Path) -> None:
    json, image = tmp_path / "ladder.json", tmp_path / "ladder.png"
    where = ["--bundle", bundle_run / "bundle", "--cache", tmp_path / "cache", "--device", "cpu"]
    result = run("ladder", "--subjects", 2, *where, "--json", json, "--image", image)
    assert result.status == 0, result.err
    rungs = {rung["rung"]: rung for rung in read_json(json)["rungs"]}
    first, *_, last = rungs
    assert (first, last) == ("two real images", "base model")
    trained, canonical = rungs["trained adapter"], rungs["in canonical form"]
    assert canonical["likeness"]["mean"] == pytest.approx(trained["likeness"]["mean"], abs=0.02)
    for rung in rungs.values():
        assert rung["n"] == 2
        assert rung["likeness"]["lo"] <= rung["likeness"]["mean"] <= rung["likeness"]["hi"]
    assert image.stat().st_size > 1000
