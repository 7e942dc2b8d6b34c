import pytest
import torch
from colours import Colours

from lorasynth.adapter import Factor
from lorasynth.base import SamplingConfig
from lorasynth.collect import LikenessGate, collect
from lorasynth.engine.fleet import train_fleet
from lorasynth.engine.recipe import Recipe
from lorasynth.library import Library

RECIPE = Recipe(steps=2, rank=2, targets=("to_q", "to_v"), images_per_step=1)


@pytest.fixture
def gate(base):
    sampling = SamplingConfig(steps=1)
    return LikenessGate(base=base, encoder=Colours(), least=-1.01, samples=5, sampling=sampling)


def test_an_adapters_likeness_does_not_depend_on_its_fleet(base, subjects, gate):
    factors = train_fleet(base, RECIPE, subjects[:3], dtype=torch.float64).factors
    whole = gate(factors, subjects[:3])
    last = {name: Factor(f.A[2:], f.B[2:]) for name, f in factors.items()}
    alone = gate(last, subjects[2:3])
    assert whole.passed.tolist() == [True] * 3
    assert alone.metrics["likeness"][0] == pytest.approx(whole.metrics["likeness"][2], abs=1e-4)


def test_four_samples_are_the_default(base):
    assert LikenessGate(base=base, encoder=Colours(), least=0.3).samples == 4


def test_what_falls_short_stays_out(tmp_path, base, source, gate):
    open_gate = collect(base, source, tmp_path / "all", RECIPE, gate=gate)
    assert not open_gate.failed
    likeness = Library.open(tmp_path / "all").table["likeness"].to_pylist()
    least = sorted(likeness)[2]
    strict = LikenessGate(
        base=base, encoder=Colours(), least=least - 1e-5, samples=5, sampling=gate.sampling
    )
    report = collect(base, source, tmp_path / "some", RECIPE, gate=strict)
    assert len(report.collected) == 3
    assert all("quality gate" in reason for reason in report.failed.values())
