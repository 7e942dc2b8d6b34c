"""Encoders by name, and packages that are missing."""

from pathlib import Path

import pytest

from lorasynth.condition import NAMED, load_encoder
from lorasynth.condition.faces.contract import need
from lorasynth.core.errors import BundleError, ConfigError


def test_all_named_encoders_state_what_they_are() -> None:
    assert sorted(NAMED.own) == ["clip", "dino", "dlib", "insightface", "onnx"]
    for name in NAMED.names():
        one = NAMED.get(name)
        assert one.spelling.partition(":")[0] == name
        assert one.licence
        assert one.packages or name == "reader"
    assert "non-commercial" in NAMED.get("insightface").licence


@pytest.mark.parametrize("source", ["dlb", "somewhere/encoder", "psychic:1"])
def test_what_is_neither_folder_nor_name_is_told_with_the_way_to_the_names(source: str) -> None:
    with pytest.raises(BundleError, match=r"lorasynth encoders list.*does not exist") as caught:
        load_encoder(source)
    assert source in str(caught.value)


def test_a_folder_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dlib").mkdir()
    (tmp_path / "dlib" / "config.json").write_text('{"kind": "psychic"}')
    with pytest.raises(BundleError, match="'psychic'"):
        load_encoder("dlib")


def test_names_that_need_more_or_less_say_so() -> None:
    with pytest.raises(ConfigError, match="nothing after its name, but got 'x'"):
        load_encoder("dlib:x")
    with pytest.raises(ConfigError, match=r"onnx:arcface\.onnx"):
        load_encoder("onnx")


def test_a_missing_package_is_told_with_the_command_that_installs_it() -> None:
    with pytest.raises(BundleError, match=r"pip install '.\[face\]'") as caught:
        need("no_such_package", "face")
    assert "\n" not in str(caught.value)


def test_files_tell_no_users_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack below the home folder is named from there; others may lie anywhere."""
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    for place, said in (("alice/packs/x_l", "~/packs/x_l"), ("srv/x_l", f"{tmp_path}/srv/x_l")):
        (tmp_path / place).mkdir(parents=True)
        config = NAMED.get("insightface").configure(str(tmp_path / place))
        assert config.detector == config.network == f"insightface:{said}"
        assert config.name == "insightface-x-l"
    assert NAMED.get("insightface").configure("buffalo_l").network == "insightface:buffalo_l"
