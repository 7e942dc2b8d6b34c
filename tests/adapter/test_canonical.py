import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasynth.adapter import Factor, Layout, canonicalise, choose_reference, map_factors
from lorasynth.core.errors import LayoutError


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm().clamp_min(1e-30))


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_balanced_factors_are_the_singular_value_decomposition(make_factors, rank: int) -> None:
    for factor in make_factors(3, rank=rank).values():
        a, b = canonicalise({"": factor})[""]
        spectrum = torch.linalg.svdvals(factor.B.double() @ factor.A.double())
        expected = torch.zeros(3, rank, dtype=torch.float64)
        expected[:, : spectrum.shape[-1]] = spectrum[:, :rank]
        expected = torch.diag_embed(expected).float()
        torch.testing.assert_close(a @ a.mT, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b.mT @ b, expected, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 4), st.integers(0, 4), st.floats(1e-4, 1e4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_balancing_keeps_any_update(rank: int, true_rank: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(rank) < true_rank).float()
    factor = Factor(
        torch.randn(2, rank, 6, generator=generator) * size,
        torch.randn(2, 5, rank, generator=generator) * mask / size,
    )
    a, b = canonicalise({"": factor})[""]
    assert distance((b @ a).double(), factor.B.double() @ factor.A.double()) < 1e-5
    torch.testing.assert_close(a.norm(), b.norm(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("zero", ["A", "B", "both"])
def test_a_zero_update_gives_zeros(make_factors, rank: int, zero: str) -> None:
    for factor in make_factors(2, rank=rank).values():
        a = torch.zeros_like(factor.A) if zero != "B" else factor.A
        b = torch.zeros_like(factor.B) if zero != "A" else factor.B
        balanced = canonicalise({"": Factor(a, b)})[""]
        assert balanced.A.abs().max() < 1e-12
        assert balanced.B.abs().max() < 1e-12


def test_a_rank_above_the_widths_is_padded(make_factors, dense) -> None:
    factors = make_factors(2, rank=10)
    canonical = canonicalise(factors)
    assert Layout.from_factors(canonical) == Layout.from_factors(factors)
    assert distance(dense(canonical), dense(factors)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_is_at_least_float32(make_factors, dense, dtype: torch.dtype) -> None:
    factors = make_factors(2, dtype=dtype)
    reference = choose_reference(make_factors(1, seed=7), "procrustes")
    canonical = canonicalise(factors, "procrustes", reference)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {tensor.dtype for factor in canonical.values() for tensor in factor} == {wanted}
    assert distance(dense(canonical), dense(factors)) < 1e-5


def test_batching_does_not_change_the_result(make_factors) -> None:
    factors = make_factors(4, rank=3)
    reference = choose_reference(factors, "procrustes")
    layout = Layout.from_factors(factors)
    together = layout.flatten(canonicalise(factors, "procrustes", reference))
    for row in range(4):
        one = map_factors(lambda tensor, row=row: tensor[row : row + 1], factors)
        alone = layout.flatten(canonicalise(one, "procrustes", reference))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_reference_depends_on_the_first_adapter_alone(make_factors) -> None:
    factors = make_factors(3)
    first = map_factors(lambda tensor: tensor[:1], factors)
    layout = Layout.from_factors(factors)
    for gauge in ("sign", "shared"):
        whole, part = choose_reference(factors, gauge), choose_reference(first, gauge)
        assert torch.equal(layout.flatten(whole), layout.flatten(part))


def test_a_reference_is_required_and_must_fit(make_factors) -> None:
    with pytest.raises(LayoutError, match="the gauge 'sign' needs a reference"):
        canonicalise(make_factors(), "sign")
    with pytest.raises(LayoutError, match="must have the layout's shapes"):
        canonicalise(make_factors(rank=2), "sign", choose_reference(make_factors(rank=1), "sign"))
