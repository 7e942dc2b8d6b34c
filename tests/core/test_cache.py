"""Results that are kept: the identity decides, and is compared before a file is used."""

from pathlib import Path

import pytest
import torch

from lorasynth.core.cache import Cache
from lorasynth.core.config import read_json
from lorasynth.evaluation.config import BenchmarkConfig


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def test_a_report_is_made_once(cache: Cache) -> None:
    identity = {"config": BenchmarkConfig(images=3), "where": Path("x"), "sizes": (1, 2)}
    first = cache.report("a table", identity, lambda: {"rows": (1.5, 2)})
    assert first == cache.report("a table", identity, pytest.fail) == {"rows": [1.5, 2]}
    other = identity | {"config": BenchmarkConfig(images=4)}
    assert cache.report("a table", other, lambda: 7) == 7
    kept = read_json(cache.path("a table", identity, ".json"))["identity"]
    assert kept["config"]["images"] == 3


def test_what_another_identity_made_is_not_used(cache: Cache) -> None:
    """Such as by a file that was renamed."""
    cache.report("one", 1, lambda: "first")
    cache.path("one", 1, ".json").rename(cache.path("one", 2, ".json"))
    assert cache.report("one", 2, lambda: "second") == "second"
    cache.tensors("t", 1, lambda: {"x": torch.zeros(2)})
    cache.path("t", 1, ".safetensors").rename(cache.path("t", 2, ".safetensors"))
    assert cache.tensors("t", 2, lambda: {"x": torch.ones(2)})["x"].equal(torch.ones(2))


def test_tensors_are_read_in_either_case(cache: Cache) -> None:
    columns = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T
    first = cache.tensors("t", {"a": 1}, lambda: {"x": columns})
    again = cache.tensors("t", {"a": 1}, pytest.fail)
    assert first["x"].equal(columns)
    assert first["x"].stride() == again["x"].stride() == (4, 1)


def test_what_fails_leaves_nothing(cache: Cache) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no")

    for keep in (cache.report, cache.folder_of):
        with pytest.raises(RuntimeError):
            keep("x", 1, fails)  # type: ignore[operator]
    assert not any(path.is_file() for path in cache.folder.rglob("*"))


def test_a_folder_is_made_once(cache: Cache) -> None:
    path = cache.folder_of("model", 1, lambda path: path.mkdir())
    assert cache.folder_of("model", 1, pytest.fail) == path
