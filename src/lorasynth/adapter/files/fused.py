"""Layers that are one in one program and several in another: q, k and v as rows of one matrix.

ΔW of the fused layer is the others' ΔW below one another, so its rank is the sum of theirs unless
they share their A.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.factors import Factor


def fuse(parts: Sequence[Factor | None], rows: Sequence[int]) -> Factor:
    """One factor of several below one another; None is an update of zero.

    Args:
        parts: at least one is a factor; all take the same input.
        rows: output width of each part.
    """
    present = [part for part in parts if part is not None]
    shared = all(torch.equal(part.A, present[0].A) for part in present)
    rank = present[0].rank if shared else sum(part.rank for part in present)
    B, start = present[0].B.new_zeros(sum(rows), rank), 0
    for part, block in zip(parts, B.split(list(rows)), strict=True):
        if part is not None:
            block[:, start : start + part.rank] = part.B
            start += 0 if shared else part.rank
    A = present[0].A if shared else torch.cat([part.A for part in present])
    return Factor(A, B)


def separate(fused: Factor, rows: Sequence[int]) -> list[Factor | None]:
    """The inverse of `fuse`: each part keeps the components that it uses, and is None without any.

    An update that is zero everywhere is zero in every part.
    """
    blocks = fused.B.split(list(rows))
    if not fused.B.any():
        return [Factor(fused.A, block) for block in blocks]
    return [_used(fused.A, block) for block in blocks]


def _used(A: Float[Tensor, "r in"], B: Float[Tensor, "out r"]) -> Factor | None:
    used = B.any(dim=0)
    return Factor(A[used], B[:, used]) if used.any() else None


def swap_halves(factor: Factor) -> Factor:
    """Shift and scale in the other order, where a layer makes these two of its input."""
    if factor.out_features != 2 * factor.in_features:
        return factor
    first, second = factor.B.chunk(2)
    return Factor(factor.A, torch.cat([second, first]))
