from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorasynth.adapter import Factor, Factors, Layout, Slot
from lorasynth.library import Library

LAYOUT = Layout((Slot("a.to_q", 5, 4, 2), Slot("b.to_q", 5, 4, 2), Slot("c", 3, 6, 1)))


@pytest.fixture
def layout() -> Layout:
    return LAYOUT


@pytest.fixture
def make_factors() -> Callable[..., Factors]:
    """Random stacked raw factors; row i is the same whatever n is."""

    def make(start: int, stop: int) -> Factors:
        rows = []
        for row in range(start, stop):
            generator = torch.Generator().manual_seed(row)
            rows.append(torch.randn(LAYOUT.size, generator=generator))
        return LAYOUT.unflatten(torch.stack(rows))

    return make


def subjects(start: int, stop: int) -> list[dict]:
    return [{"id": f"s{row}", "hair": "red" if row % 2 else "black"} for row in range(start, stop)]


@pytest.fixture
def fill(make_factors) -> Callable[..., Library]:
    """A library whose shards end at the given rows."""

    def make(path: Path, *ends: int, **options) -> Library:
        library = Library.create(path, LAYOUT, "base", {"lr": 0.1}, **options)
        for start, stop in zip((0, *ends), ends, strict=False):
            library.append(make_factors(start, stop), subjects(start, stop))
        return library

    return make


@pytest.fixture
def make_subjects() -> Callable[[int, int], list[dict]]:
    return subjects


@pytest.fixture
def shared_a(make_factors) -> Callable[[int, int], Factors]:
    """Adapters with one A, as from training B alone."""

    def make(start: int, stop: int) -> Factors:
        shared = make_factors(0, 1)
        return {
            module: Factor(shared[module].A.expand(stop - start, -1, -1), factor.B)
            for module, factor in make_factors(start, stop).items()
        }

    return make
