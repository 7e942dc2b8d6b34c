import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasynth.errors import LibraryError
from lorasynth.library import streaming_statistics


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.floats(-1e6, 1e6))
def test_one_pass_is_exact_for_any_batches(sizes: list[int], offset: float) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    vectors = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64) + offset
    found = streaming_statistics(vectors.split(sizes))
    torch.testing.assert_close(found.mean, vectors.mean(0))
    torch.testing.assert_close(found.std, vectors.std(0, correction=0), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.norms, vectors.norm(dim=1))
    assert len(found) == sum(sizes)


def test_float32_batches_are_summed_in_float64() -> None:
    batches = [torch.full((1, 1), 1e8), torch.full((1, 1), 1e8 + 8), torch.full((1, 1), 1e8 + 16)]
    found = streaming_statistics(batches)
    assert found.mean.item() == 1e8 + 8
    assert found.std.item() == pytest.approx((128 / 3) ** 0.5)


def test_nothing_is_refused() -> None:
    with pytest.raises(LibraryError, match="at least one vector"):
        streaming_statistics([])
