import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bounds import cheap
from lorasynth.avatars.config import JudgeConfig
from lorasynth.avatars.denoiser import BaseTrainingConfig
from lorasynth.base import SamplingConfig
from lorasynth.condition import TrainedConfig
from lorasynth.core.atomic import write_json
from lorasynth.core.config import changes, from_dict, read_json, to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.engine.config import ArcFaceConfig
from lorasynth.engine.trainer import Optimisation
from lorasynth.hypernet import HypernetConfig, LatentDiffusionConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    widths: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    kind: Literal["a", "b"]
    inner: Inner
    steps: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


numbers = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, rate=numbers, widths=st.lists(st.integers()).map(tuple))
outers = st.builds(
    Outer,
    kind=st.sampled_from(["a", "b"]),
    inner=inners,
    steps=st.none() | st.integers(),
    options=st.dictionaries(
        st.text(), st.integers() | st.text() | st.dictionaries(st.text(), numbers)
    ),
)


@given(outers)
def test_a_config_survives_json(config: Outer) -> None:
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    "config",
    [
        TrainedConfig(),
        ArcFaceConfig(),
        BaseTrainingConfig(),
        JudgeConfig(),
        Optimisation(steps=3, batch=2, lr=0.1),
        SamplingConfig(),
        HypernetConfig(model=LatentDiffusionConfig(denoiser_options={"modulation": "low_rank"})),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_default_survives_json(tmp_path: Path, config: Any) -> None:
    write_json(tmp_path / "config.json", to_dict(config))
    assert from_dict(type(config), read_json(tmp_path / "config.json")) == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "a", "inner": {"rate": 1}, "stepz": 3}, r"Outer has no option 'stepz'.*steps"),
        ({"kind": "a", "inner": {"rate": 1, "width": []}}, r"Inner has no option 'width'.*widths"),
        ({"kind": "c", "inner": {"rate": 1}}, r"Outer\.kind: .*'a' or 'b', but got 'c'"),
        ({"kind": "a", "inner": {"rate": "fast"}}, r"Outer\.inner\.rate: .*got 'fast'"),
        ({"kind": "a", "inner": {"rate": 1, "widths": [1, 2.5]}}, r"inner\.widths\.1: .*got 2\.5"),
        ({"kind": "a", "inner": 3}, r"Outer\.inner: .*got 3"),
        ({"kind": "a"}, r"Outer\.inner: Field required"),
    ],
)
def test_a_config_that_does_not_fit_is_told_in_one_line(
    value: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(Outer, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist: check the path"),
        (b"{", "must be readable JSON"),
        (b"\xff\xfe", "must be readable JSON"),
        (b"[1]", "must hold a JSON object, but holds a list"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, text: bytes | None, message: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="must be readable JSON"):
        read_json(tmp_path)


def test_changes_are_told_by_the_smallest_part() -> None:
    kept = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {"f": 0}}
    mine = {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert changes(kept, mine) == ["a.b was 1 and is now 2", "e was {'f': 0} and is now 3"]
    assert changes(kept, kept) == []


TOO_MUCH = {
    "deep": b"[" * 100_000,
    "deep in an object": b'{"a":' * 50_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "a big number": b'{"a": ' + b"9" * 30 + b"}",
    "many values": b'{"a": [' + b"[]," * 5_000_000 + b"1]}",
    "many objects": b'{"a": [' + b"{}," * 5_000_000 + b"1]}",
    "many keys": b"{" + b'"a":1,' * 3_000_000 + b'"b":1}',
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_json_that_would_take_time_or_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_bytes(TOO_MUCH[name])
    with cheap(), pytest.raises(ConfigError, match="must be readable JSON") as caught:
        read_json(tmp_path / "config.json")
    assert len(str(caught.value)) < 500


def test_what_is_no_file_or_without_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(1 << 40)  # takes no disk
    for path in (tmp_path / "pipe.json", tmp_path / "sparse.json", Path("/dev/zero")):
        with cheap(), pytest.raises(ConfigError, match="must be readable JSON"):
            read_json(path)


def test_a_value_that_is_wrong_is_quoted_in_short() -> None:
    with cheap(), pytest.raises(ConfigError) as caught:
        from_dict(Outer, {"inner": {"size": "x" * 10_000_000}})
    assert len(str(caught.value)) < 1000
