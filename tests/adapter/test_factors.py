import pytest
import torch

from lorasynth.adapter import (
    Factor,
    concatenate,
    cosine,
    cosines,
    factors,
    inner,
    inner_products,
    map_factors,
    norm,
    require_finite,
    stack,
    unstack,
)
from lorasynth.core.errors import LayoutError


def test_products_and_norms_are_those_of_the_dense_update(make_factors, dense) -> None:
    left, right = make_factors(3, seed=1), make_factors(4, rank=3, seed=2)
    expected = dense(left) @ dense(right).T
    torch.testing.assert_close(inner_products(left, right), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(norm(left), dense(left).norm(dim=1), rtol=1e-6, atol=0)
    lengths = dense(left).norm(dim=1)[:, None] * dense(right).norm(dim=1)
    torch.testing.assert_close(cosines(left, right), expected / lengths, rtol=1e-4, atol=1e-6)
    squares = sum(norm({module: factor}) ** 2 for module, factor in left.items())
    torch.testing.assert_close(squares, norm(left) ** 2)


def test_pairwise_forms_are_the_diagonal(make_factors) -> None:
    left, right = make_factors(3, seed=1), make_factors(3, seed=2)
    torch.testing.assert_close(inner(left, right), inner_products(left, right).diagonal())
    torch.testing.assert_close(cosine(left, right), cosines(left, right).diagonal())
    assert norm(unstack(left)[0]).shape == ()


def test_chunks_do_not_change_products(make_factors, monkeypatch) -> None:
    left, right = make_factors(5, seed=1), make_factors(4, seed=2)
    whole = inner_products(left, right)
    monkeypatch.setattr(factors, "_CHUNK_ELEMENTS", 20)
    torch.testing.assert_close(inner_products(left, right), whole, rtol=1e-5, atol=1e-5)


def test_cosine_does_not_depend_on_the_gauge(make_factors) -> None:
    original = make_factors(2)
    change = torch.tensor([[2.0, 1.0], [0.5, -3.0]])
    changed = {
        module: Factor(change.inverse() @ factor.A, factor.B @ change)
        for module, factor in original.items()
    }
    torch.testing.assert_close(cosine(original, changed), torch.ones(2, dtype=torch.float64))


def test_a_zero_adapter_has_cosine_zero(make_factors) -> None:
    zero = map_factors(torch.zeros_like, make_factors(2))
    assert cosines(zero, make_factors(3)).eq(0).all()


def test_stack_unstack_concatenate(make_factors) -> None:
    adapters = unstack(make_factors(4))
    joined = concatenate([stack(adapters[:1]), stack(adapters[1:])])
    for module, factor in make_factors(4).items():
        assert torch.equal(joined[module].A, factor.A)
        assert torch.equal(joined[module].B, factor.B)


def test_unequal_adapters_are_not_stacked(make_factors) -> None:
    with pytest.raises(LayoutError, match="number 1 differs from number 0 at down_blocks"):
        stack([make_factors(None), make_factors(None, rank=3)])
    with pytest.raises(LayoutError, match="at least one"):
        stack([])
    other = {"m": Factor(torch.zeros(1, 1, 2), torch.zeros(1, 2, 1))}
    with pytest.raises(LayoutError, match="same modules to be compared"):
        inner_products(make_factors(1), other)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("-inf"), "infinite")])
def test_non_finite_numbers_are_named(make_factors, value: float, word: str) -> None:
    broken = make_factors(2)
    broken["mid_block.attentions.0.proj_in"].B[1, 0, 0] = value
    with pytest.raises(LayoutError, match=f"B of mid_block.attentions.0.proj_in holds {word}"):
        require_finite(broken)
