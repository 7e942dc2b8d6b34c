"""What every gauge must do; a new one joins by being registered."""

from typing import NamedTuple

import pytest
import torch

from lorasynth.adapter import (
    GAUGES,
    Factor,
    Factors,
    Layout,
    canonicalise,
    choose_reference,
    map_factors,
)
from lorasynth.core.errors import LayoutError


class Case(NamedTuple):
    factors: Factors
    reference: Factors
    layout: Layout


@pytest.fixture(params=GAUGES.names())
def gauge(request) -> str:
    return request.param


@pytest.fixture(params=[1, 3])
def case(request, gauge, make_factors) -> Case:
    """Adapters that share the reference's A, so that every gauge applies to them."""
    factors = make_factors(4, rank=request.param)
    factors = {
        module: Factor(factor.A[:1].expand_as(factor.A).clone(), factor.B)
        for module, factor in factors.items()
    }
    return Case(factors, choose_reference(factors, gauge), Layout.from_factors(factors))


def vectors(case: Case, gauge: str, factors: Factors) -> torch.Tensor:
    """Canonical vectors, without the signs that a gauge leaves open."""
    found = case.layout.flatten(canonicalise(factors, gauge, case.reference))
    return found if GAUGES.get(gauge).needs_reference else found.abs()


def relative(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(((left - right).norm(dim=-1) / right.norm(dim=-1)).max())


def test_the_update_is_kept(case: Case, gauge: str, dense) -> None:
    canonical = canonicalise(case.factors, gauge, case.reference)
    assert relative(dense(canonical), dense(case.factors)) < 1e-5


def test_idempotent(case: Case, gauge: str) -> None:
    once = vectors(case, gauge, case.factors)
    canonical = canonicalise(case.factors, gauge, case.reference)
    assert relative(vectors(case, gauge, canonical), once) < 1e-4


def test_one_update_has_one_vector(case: Case, gauge: str) -> None:
    generator = torch.Generator().manual_seed(5)
    changed = {}
    for module, (a, b) in case.factors.items():
        rank = a.shape[-2]
        change = torch.eye(rank) + 0.3 * torch.randn(4, rank, rank, generator=generator)
        change[0] *= -1
        changed[module] = Factor(torch.linalg.inv(change) @ a, b @ change)
    before = vectors(case, gauge, case.factors)
    assert relative(vectors(case, gauge, changed), before) < 1e-3


def test_norms_of_a_and_b_are_equal(case: Case, gauge: str) -> None:
    if not GAUGES.get(gauge).balanced:
        pytest.skip("this gauge leaves A and B unequal")
    for a, b in canonicalise(case.factors, gauge, case.reference).values():
        torch.testing.assert_close(a @ a.mT, b.mT @ b, rtol=1e-4, atol=1e-4)


def test_zero_and_rank_deficient_adapters(case: Case, gauge: str, dense) -> None:
    weak = map_factors(torch.clone, case.factors)
    for factor in weak.values():
        factor.B[1] = 0
        factor.B[2, :, 1:] = 0
        factor.B[3] = factor.B[3, :, :1]
    canonical = canonicalise(weak, gauge, case.reference)
    assert torch.isfinite(case.layout.flatten(canonical)).all()
    assert (dense(canonical) - dense(weak)).abs().max() < 1e-5


def test_equal_singular_values(case: Case, gauge: str, dense) -> None:
    rank = case.layout.slots[0].rank
    generator = torch.Generator().manual_seed(5)
    equal = {
        module: Factor(
            torch.linalg.qr(factor.A.mT)[0].mT.clone(),
            torch.linalg.qr(torch.randn(4, factor.out_features, rank, generator=generator))[0],
        )
        for module, factor in case.factors.items()
    }
    reference = choose_reference(equal, gauge)
    canonical = canonicalise(equal, gauge, reference)
    assert relative(dense(canonical), dense(equal)) < 1e-5


def test_shared_refuses_another_a(make_factors) -> None:
    reference = choose_reference(make_factors(1, seed=1), "shared")
    with pytest.raises(LayoutError, match="trained with the reference's own A"):
        canonicalise(make_factors(2, seed=2), "shared", reference)


def test_shared_is_linear_in_the_update(make_factors) -> None:
    factors = make_factors(2)
    shared = {
        module: Factor(factor.A[:1].expand_as(factor.A), factor.B)
        for module, factor in factors.items()
    }
    canonical = canonicalise(shared, "shared", choose_reference(shared, "shared"))
    for module, factor in shared.items():
        torch.testing.assert_close(canonical[module].B, factor.B, rtol=1e-3, atol=1e-4)
        assert torch.equal(canonical[module].A, factor.A)


def test_sign_and_procrustes_agree_at_rank_one(make_factors) -> None:
    factors = make_factors(5, rank=1)
    reference = choose_reference(factors, "sign")
    layout = Layout.from_factors(factors)
    sign = layout.flatten(canonicalise(factors, "sign", reference))
    procrustes = layout.flatten(canonicalise(factors, "procrustes", reference))
    torch.testing.assert_close(sign, procrustes)


def test_procrustes_is_nearest_to_the_reference(make_factors) -> None:
    factors = make_factors(6, rank=3)
    reference = choose_reference(factors, "procrustes")
    layout = Layout.from_factors(factors)
    target = layout.flatten(reference)

    def distances(gauge: str) -> torch.Tensor:
        return (layout.flatten(canonicalise(factors, gauge, reference)) - target).norm(dim=1)

    assert (distances("procrustes") <= distances("sign") + 1e-4).all()
    assert (distances("sign") <= distances("none") + 1e-4).all()
    assert distances("procrustes")[0] < 1e-3
