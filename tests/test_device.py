import pytest
import torch

from lorasynth.device import has_fast_bfloat16, is_out_of_memory, pick_device
from lorasynth.errors import ConfigError


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_best_present(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device() == torch.device(expected)


def test_a_device_by_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "cuda:99"])
def test_a_device_that_is_not_there_is_told_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--device must be auto, .*'{name}'") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_half_precision_only_where_it_is_fast() -> None:
    assert isinstance(has_fast_bfloat16(torch.device("cpu")), bool)
    assert has_fast_bfloat16(torch.device("cuda"))
    assert not has_fast_bfloat16(torch.device("mps"))


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(KeyboardInterrupt())
