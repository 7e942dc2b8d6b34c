"""Adapters at once: updates add up, whatever the ranks and modules of each."""

import torch

from lorasynth.adapter import Factor
from lorasynth.adapter.addition import add


def factor(rank: int, out: int = 4) -> Factor:
    return Factor(torch.rand(rank, 3), torch.rand(out, rank))


def test_updates_add_up_over_ranks_and_modules() -> None:
    left = {"a": factor(2), "b": factor(1, out=5)}
    right = {"c": factor(1), "a": factor(3)}
    both = add([left, right])
    assert sorted(both) == ["a", "b", "c"]
    updates = [part["a"].B @ part["a"].A for part in (left, right)]
    torch.testing.assert_close(both["a"].B @ both["a"].A, updates[0] + updates[1])
    assert both["a"].rank == 5
    torch.testing.assert_close(both["b"], left["b"])
    torch.testing.assert_close(both["c"], right["c"])


def test_one_a_is_shared_though_it_was_rounded_differently() -> None:
    left = factor(2)
    right = Factor(left.A * (1 + 1e-7), torch.rand(4, 2))
    both = add([{"a": left}, {"a": right}])["a"]
    assert both.rank == 2
    torch.testing.assert_close(both.B @ both.A, left.B @ left.A + right.B @ right.A)
    apart = add([{"a": left}, {"a": Factor(left.A * 1.001, right.B)}])["a"]
    assert apart.rank == 4
