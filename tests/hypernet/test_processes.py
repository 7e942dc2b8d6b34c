"""Two processes (gloo, on CPUs) learn what one does, whoever began the run."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorasynth.core.errors import ConfigError
from lorasynth.hypernet import LatentDiffusion
from lorasynth.hypernet.share import Share, share_dropout
from two_processes import launch

from .processes import StoppedError, fit


@cache
def alone() -> LatentDiffusion:
    return fit()


def assert_same_curve(found: Sequence[dict[str, Any]]) -> None:
    expected = alone().history
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_does(kind: str, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        fit(tmp_path / "begun.safetensors", stop=7)
    done = launch("-m", "hypernet.processes", kind, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_curve(json.loads((tmp_path / "curve.json").read_text()))
    assert done.stderr.count("train hypernetwork: 16/16") == 1
    model = fit(tmp_path / "stopped.safetensors")
    assert_same_curve(model.history)
    for name, value in alone().state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_shares_of_dropout_are_those_of_one_process() -> None:
    x = torch.randn(6, 4)
    torch.manual_seed(3)
    expected = nn.Dropout(0.5)(x)
    for index in range(3):
        share = Share(index, 3)
        [layer] = share_dropout(nn.Sequential(nn.Dropout(0.5)), share)
        torch.manual_seed(3)
        assert layer(share.of(x)).equal(share.of(expected))
        assert layer.eval()(x).equal(x)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    Share(0, 4).require_even(128)
    with pytest.raises(ConfigError, match="use, for example, 132"):
        Share(0, 4).require_even(130)
