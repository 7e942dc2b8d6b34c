"""Two processes (gloo, on CPUs) learn what one does, whoever began the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from two_processes import launch

from .processes import StoppedError, fit


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    alone = fit()

    def assert_same_curve(found: list[dict[str, Any]]) -> None:
        for one, other in zip(found, alone.history, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)

    with pytest.raises(StoppedError):
        fit(tmp_path / "begun.safetensors", stop=10)
    done = launch("-m", "hypernet.processes", tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_curve(json.loads((tmp_path / "curve.json").read_text()))
    assert done.stderr.count("hypernetwork: 16/16") == 1
    model = fit(tmp_path / "stopped.safetensors")
    assert_same_curve(model.history)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)
