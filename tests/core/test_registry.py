import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lorasynth.core.errors import ConfigError
from lorasynth.core.registry import Registry


def test_registers_and_names_both_ways() -> None:
    registry: Registry[type] = Registry("thing", "lorasynth.no_such_group")
    registry.register("b")(int)
    registry.register("a")(str)
    assert registry.names() == ["a", "b"]
    assert registry.get("a") is str
    assert registry.name_of(int) == "b"


def test_an_unknown_name_lists_the_known_ones() -> None:
    registry: Registry[type] = Registry("thing", "lorasynth.no_such_group")
    registry.register("a")(str)
    with pytest.raises(ConfigError, match="must be one of a, but got 'z'"):
        registry.get("z")
    with pytest.raises(ConfigError, match="must be registered"):
        registry.name_of(float)


def test_an_entry_point_of_another_package_is_found() -> None:
    registry: Registry[object] = Registry("command", "console_scripts")
    assert "lorasynth" in registry.names()


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    """A registry with a plug-in of its own, and two of an installed package: one is broken."""
    site = tmp_path / "site"
    info = site / "others-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    points = "broken = others_broken:Plugin\nwhole = others_whole:Plugin\n"
    (info / "entry_points.txt").write_text(f"[lorasynth.things]\n{points}own = others_whole:None\n")
    (site / "others_broken.py").write_text("raise RuntimeError('it ran')")
    (site / "others_whole.py").write_text("class Plugin: pass\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "others_whole", raising=False)
    registry: Registry[object] = Registry("thing", "lorasynth.things")
    registry.register("own")(int)
    return registry


def test_code_of_other_packages_runs_only_when_its_name_is_asked_for(
    others: Registry[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(EntryPoint, "load", lambda point: pytest.fail(f"{point.name} was imported"))
        assert others.names() == ["broken", "own", "whole"]
        assert others.get("own") is int
        assert others.name_of(int) == "own"
        assert list(others.own) == ["own"]
        with pytest.raises(ConfigError, match="must be registered"):
            others.name_of(float)
    assert others.name_of(others.get("whole")) == "whole"


def test_a_plug_in_that_cannot_be_imported_is_named_in_one_line(others: Registry[object]) -> None:
    with pytest.raises(ConfigError, match=r"'broken' is of another package.*RuntimeError: it ran"):
        others.get("broken")
