from pathlib import Path

import numpy as np
import pytest

from command_line import Run
from lorasynth.core.config import read_json
from lorasynth.studies.growth import doubled, extrapolate

from .test_repeatability import parts_of


def test_every_size_is_measured_once(bundle_run: Path, run: Run, tmp_path: Path) -> None:
    sets = ("optimisation.steps=2", "optimisation.batch=2", "record_every=1")
    words = [word for setting in sets for word in ("--set", setting)]
    library, out = bundle_run / "out" / "library", tmp_path / "growth"
    where = ["growth", library, "-o", out, "--subjects", 2, *parts_of(bundle_run / "bundle")]
    where += ["--condition", bundle_run / "bundle" / "synthesizer" / "encoder"]
    sizes = ["--size", 3, "--size", 6]
    result = run(*where, *sizes, *words, "--device", "cpu")
    assert result.status == 0, result.err
    small, whole = (read_json(out / f"{size}.json") for size in (3, 6))
    assert (small["size"], whole["size"]) == (3, 6)
    assert list(whole["methods"]) == ["mean", "nearest", "ridge", "mlp", "diffusion"]
    assert (out / "growth.png").stat().st_size > 1000
    again = run(*where, *sizes, *words, "--device", "cpu")
    assert "library of" in result.err
    assert "library of" not in again.err
    run(*where, "--size", 7, *words).is_one_error("must hold 7 adapters, but holds 6")


def test_sizes_double_up_to_the_whole() -> None:
    assert doubled(1994) == [125, 250, 500, 1000, 1994]
    assert doubled(1100) == [125, 250, 500, 1100]
    assert doubled(100) == [100]


def test_the_curve_is_recovered() -> None:
    sizes = [125, 250, 500, 1000, 2000]
    a, b, c = extrapolate(sizes, [0.8 - 2 * n**-0.5 for n in sizes])
    assert (a, b, c) == pytest.approx((0.8, 2.0, 0.5), rel=0.02)
    assert np.isfinite([a, b, c]).all()
