import pytest

from lorasynth.errors import ConfigError
from lorasynth.registry import Registry


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
