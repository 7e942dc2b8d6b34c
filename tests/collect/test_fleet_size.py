"""Fleets as large as memory allows."""

import os
from unittest.mock import Mock

import pytest
import torch
from collecting import collect

from lorasynth.base import BaseModel
from lorasynth.collect import worker
from lorasynth.core.errors import ImageError
from lorasynth.engine import fleet_size
from lorasynth.engine.fleet_size import LARGEST, LARGEST_ON_CPU, fitting_size, free_memory
from lorasynth.engine.recipe import Recipe
from lorasynth.library import Library

CPU, GPU, MPS = map(torch.device, ("cpu", "cuda", "mps"))
RECIPE = Recipe(steps=3, rank=2, targets=("to_q", "to_v"), images_per_step=2)
MEBI = 1 << 20


def test_free_memory_is_less_than_all():
    free = free_memory(CPU)
    assert free is not None
    assert 0 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_container_has_less(tmp_path):
    assert fleet_size._left_to_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert fleet_size._left_to_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert fleet_size._left_to_container(tmp_path) == 450


def on(device):
    return Mock(spec=BaseModel, device=device, _networks=list)


@pytest.mark.parametrize(
    ("device", "free", "size"),
    [
        (CPU, 1000 * MEBI, 7),  # 0.7 of 1000 in parts of 100
        (CPU, 90 * MEBI, 1),
        (CPU, 10_000 * MEBI, LARGEST_ON_CPU),
        (GPU, 100_000 * MEBI, LARGEST),
        (CPU, None, LARGEST_ON_CPU),
        (GPU, None, LARGEST_ON_CPU),
    ],
)
def test_the_size_follows_from_the_tensors_of_a_trial(monkeypatch, device, free, size):
    def trial():
        for _ in range(3):
            held = [torch.empty(50 * MEBI, dtype=torch.uint8) for _ in range(4)]
            del held

    monkeypatch.setattr(fleet_size, "free_memory", lambda *_: free)
    assert fitting_size(trial, on(device)) == size


def test_two_that_do_not_fit_are_trained_one_by_one():
    def trial():
        torch.empty(1 << 60, dtype=torch.uint8)

    assert fitting_size(trial, on(CPU)) == 1


def test_an_error_of_another_kind_is_no_lack_of_memory():
    def trial():
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        fitting_size(trial, on(CPU))


def test_memory_of_apples_gpu(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1000 * MEBI)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 90 * MEBI)
    assert free_memory(MPS) == 910 * MEBI


def test_a_chosen_size_changes_no_adapter(tmp_path, base, source, monkeypatch):
    load = type(source).load

    def load_but_the_first(self, name):
        if name == source.ids[0]:
            raise ImageError("an image must be whole, but this one is cut off")
        return load(self, name)

    monkeypatch.setattr(type(source), "load", load_but_the_first)
    tried = []

    def chosen(trial, model):
        trial()
        tried.append(model)
        return 3

    monkeypatch.setattr(worker, "fitting_size", chosen)
    report = collect(base, source, tmp_path / "auto", RECIPE, fleet=None)
    assert (report.fleet_size, report.collected) == (3, source.ids[1:])
    assert list(report.failed) == source.ids[:1]
    assert tried == [base]
    collect(base, source, tmp_path / "one", RECIPE, fleet=1)
    first, second = (
        library.layout.flatten(library.factors(range(len(library))))
        for library in (Library.open(tmp_path / name) for name in ("auto", "one"))
    )
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)


def test_nothing_is_tried_for_one_subject(tmp_path, base, source, monkeypatch):
    monkeypatch.setattr(worker, "fitting_size", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr(type(source), "ids", source.ids[:1])
    assert collect(base, source, tmp_path / "lib", RECIPE, fleet=None).fleet_size == 1
