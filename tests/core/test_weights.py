import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bounds import cheap
from lorasynth.core.cache import Cache
from lorasynth.core.checkpoint import read_state
from lorasynth.core.errors import BundleError
from lorasynth.core.weights import load_weights, read_weights, write_weights


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


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 3), (2, 3, 4)])
@pytest.mark.parametrize("piece", [1, 7, 1 << 24])
def test_fp16_of_any_shape_is_read_as_fp32(tmp_path: Path, shape, piece: int, monkeypatch) -> None:
    monkeypatch.setattr("lorasynth.core.weights._PIECE", piece)
    tensor = torch.randn(shape).half()
    write_weights(tmp_path / "w", {"x": tensor, "y": torch.ones(2)})
    read = read_weights(tmp_path / "w")
    assert read["x"].dtype == torch.float32
    assert read["x"].equal(tensor.float())


def test_tensors_that_share_memory_and_parts_of_others_are_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(4, 3)
    stated = {"a": whole[:2], "b": whole, "c": whole.T}
    write_weights(tmp_path / "w", stated)
    read = read_weights(tmp_path / "w")
    assert all(read[name].equal(tensor) for name, tensor in stated.items())


MEMORY = """
import sys, torch
from pathlib import Path
from lorasynth.core.weights import read_weights, write_weights

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

x = torch.full((1024, 1 << 16), 0.5)  # 268 MB
before = peak()
write_weights(sys.argv[1], {"x": x})
write_weights(sys.argv[2], {"x": x}, half=True)
print(peak() - before)
del x
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = peak()
x = read_weights(sys.argv[2])["x"]
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_large_tensors_are_not_in_memory_twice(tmp_path: Path) -> None:
    program = [sys.executable, "-c", MEMORY, tmp_path / "whole", tmp_path / "half"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    written, read = map(int, done.stdout.split())
    size = 4 << 26
    assert written < 0.9 * size, "half of it for fp16, and a piece that is tested"
    assert read < 1.2 * size


def test_what_is_kept_lies_in_memory_as_what_is_read(tmp_path: Path) -> None:
    strided = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    made = {"odd": torch.ones(3, dtype=torch.int8), "strided": strided, "scalar": torch.tensor(2.0)}
    first = Cache(tmp_path).tensors("kept", 1, lambda: made)
    again = Cache(tmp_path).tensors("kept", 1, dict)
    for name, tensor in made.items():
        for found in (first[name], again[name]):
            assert torch.equal(found, tensor)
            assert found.is_contiguous()
            assert found.data_ptr() % 64 == 0


def header_of(path: Path, text: bytes, stated: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(text) if stated is None else stated) + text)
    return path


def many_keys(path: Path) -> Path:
    one = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    return header_of(path, b"{" + b"".join(one % i for i in range(300_000)) + b'"__metadata__":{}}')


def sparse(path: Path) -> Path:
    header_of(path, b"{}", 90_000_000)
    with path.open("rb+") as file:
        file.truncate(1 << 40)  # takes no disk
    return path


@pytest.mark.parametrize("make", [many_keys, sparse])
def test_a_header_that_would_take_time_and_memory_is_refused(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "w.safetensors")
    with cheap(), pytest.raises(BundleError, match="its header would have"):
        read_weights(path)
    with cheap(), pytest.raises(BundleError, match="its header would have"):
        read_state(path, {})


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with cheap(), pytest.raises(BundleError, match="it is no file"):
            read_weights(path)
