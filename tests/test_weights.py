from pathlib import Path

import pytest
import torch
from torch import nn

from lorasynth.errors import BundleError
from lorasynth.weights import load_weights, read_weights, write_weights


def test_whole_precision_is_exact_and_half_keeps_vectors(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    for half in (False, True):
        write_weights(tmp_path / "w.safetensors", module.state_dict(), half=half)
        with torch.device("meta"):
            read = nn.Linear(3, 2)
        load_weights(read, tmp_path / "w.safetensors")
        assert read.bias.equal(module.bias)
        assert read.weight.equal(module.weight.half().float() if half else module.weight)


def test_damage_and_mismatch_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(BundleError, match="intact"):
        read_weights(path)
    write_weights(path, nn.Linear(3, 2).state_dict())
    with pytest.raises(BundleError, match="weights of Linear") as caught:
        load_weights(nn.Linear(4, 2), path)
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BundleError, match="intact"):
        read_weights(path)


@pytest.mark.parametrize(("value", "half"), [(1e6, True), (float("nan"), False)])
def test_values_that_do_not_fit_are_refused(tmp_path: Path, value: float, half: bool) -> None:
    with pytest.raises(BundleError, match="'bad'"):
        write_weights(tmp_path / "w", {"bad": torch.full((2, 2), value)}, half=half)
    assert list(tmp_path.iterdir()) == []
