from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lorasynth.adapter import Factor
from lorasynth.base import SamplingConfig
from lorasynth.collect import LikenessGate, Recipe, collect, train_fleet
from lorasynth.errors import PictureError
from lorasynth.library import Library

RECIPE = Recipe(steps=2, rank=2, targets=("to_q", "to_v"), pictures_per_step=1)


class Colours:
    """An encoder of the mean colour."""

    name, picture_size, width, licence, fingerprint = "colours", 16, 3, "none", "0"

    def embed(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        return functional.normalize(pictures.float().mean((1, 2)) - 100, dim=1)

    def presence(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        return torch.ones(len(pictures))

    def save(self, folder: Path) -> None:
        raise NotImplementedError


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


class Faceless(Colours):
    """An encoder that refuses marked pictures, or all, as others refuse those without a face."""

    def __init__(self, mark: int | None) -> None:
        self.mark = mark

    def embed(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        if self.mark is None or (pictures[:, 0, 0] == self.mark).all(dim=1).any():
            raise PictureError("a picture must show a face, but this one does not")
        return super().embed(pictures)


def test_pictures_that_the_encoder_cannot_read_are_like_nobody(base, subjects, gate):
    factors = train_fleet(base, RECIPE, subjects[:3], dtype=torch.float64).factors
    expected = gate(factors, subjects[:3]).metrics["likeness"]
    nobody = replace(gate, encoder=Faceless(None), least=-0.999)
    assert nobody(factors, subjects[:3]).passed.tolist() == [False] * 3
    marked = replace(subjects[1], pictures=torch.full_like(subjects[1].pictures, 77))
    verdict = replace(gate, encoder=Faceless(77))(factors, [subjects[0], marked, subjects[2]])
    assert verdict.metrics["likeness"][1] == -1
    assert verdict.metrics["likeness"][::2] == pytest.approx(expected[::2], abs=1e-4)


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
