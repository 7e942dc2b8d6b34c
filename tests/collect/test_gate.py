import pytest
from collecting import collect
from colours import Colours

from lorasynth.adapter import Factor
from lorasynth.base import SamplingConfig
from lorasynth.collect import SimilarityGate
from lorasynth.engine import Recipe, train_fleet
from lorasynth.library import Library

RECIPE = Recipe(steps=2, rank=2, targets=("to_q", "to_v"), images_per_step=1)


def gate_of(base, least=-1.01):
    sampling = SamplingConfig(steps=1)
    return SimilarityGate(base=base, encoder=Colours(), least=least, samples=5, sampling=sampling)


def test_the_similarity_of_an_adapter_does_not_depend_on_its_fleet(base, subjects):
    gate, factors = gate_of(base), train_fleet(base, RECIPE, subjects[:3]).factors
    whole = gate(factors, subjects[:3])
    last = {name: Factor(f.A[2:], f.B[2:]) for name, f in factors.items()}
    alone = gate(last, subjects[2:3])
    assert whole.passed.tolist() == [True] * 3
    assert alone.metrics["similarity"][0] == pytest.approx(whole.metrics["similarity"][2], abs=1e-4)


def test_what_falls_short_stays_out(tmp_path, base, source):
    assert not collect(base, source, tmp_path / "all", RECIPE, gate=gate_of(base)).failed
    found = Library.open(tmp_path / "all").table["similarity"].to_pylist()
    strict = gate_of(base, sorted(found)[2] - 1e-5)
    report = collect(base, source, tmp_path / "some", RECIPE, gate=strict)
    assert len(report.collected) == 3
    assert all("quality gate" in reason for reason in report.failed.values())
