from collections.abc import Iterator

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorasynth.adapter import Factor, cosine, norm
from lorasynth.core.device import (
    exact,
    exact_device,
    has_fast_bfloat16,
    is_out_of_memory,
    pick_device,
)
from lorasynth.core.errors import ConfigError


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


def test_a_build_without_oneapi_has_no_fast_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_fast_bfloat16(torch.device("cpu"))


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64 on MPS, as it does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "mps":
                assert leaf.dtype != torch.float64, f"{func} makes float64 on MPS"
        return found


@pytest.fixture
def pretended_mps() -> Iterator[torch.device]:
    """A device whose tensors have shapes and types, but no numbers."""
    with FakeTensorMode(), WithoutFloat64():
        yield torch.device("mps")


def test_float64_is_computed_where_there_is_some(pretended_mps: torch.device) -> None:
    x = torch.randn(3, 4, device=pretended_mps)
    with pytest.raises(AssertionError, match="float64 on MPS"):
        x.double()
    assert (exact(x).device.type, exact(x).dtype) == ("cpu", torch.float64)
    assert exact_device(pretended_mps).type == "cpu"
    assert exact_device(torch.device("cuda:1")) == torch.device("cuda:1")


def test_adapters_on_mps_are_compared_without_float64(pretended_mps: torch.device) -> None:
    stacked = {
        name: Factor(
            torch.randn(3, 2, 6, device=pretended_mps), torch.randn(3, 5, 2, device=pretended_mps)
        )
        for name in ("a", "b")
    }
    assert cosine(stacked, stacked).shape == (3,)
    assert norm(stacked).shape == (3,)


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
