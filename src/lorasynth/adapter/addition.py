"""Several adapters at once: the sum of their updates is one adapter of the sum of their ranks.

Where two share one A, as all of a library with the gauge `shared` do, they share its rows in the
sum too: (B1 + B2)·A has the rank of one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.factors import Factor, Factors


def add(adapters: Sequence[Factors]) -> Factors:
    """ΔW of the result is the sum of all ΔW: rows of A and columns of B one after the other.

    A that are equal but for rounding occur once, so the rank is that of the A that differ.

    Args:
        adapters: without batch axes; a module may be missing in some, ranks may differ.
    """
    modules = sorted({module for factors in adapters for module in factors})
    return {
        name: _sum([factors[name] for factors in adapters if name in factors]) for name in modules
    }


#: Norm of the difference of two A, relative to theirs, that rounding alone may make.
_ROUNDING = 1e-6


def _is_same(one: Float[Tensor, "_ in"], other: Float[Tensor, "_ in"]) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one.float() - other.float()).norm() <= _ROUNDING * other.float().norm())


def _sum(factors: Sequence[Factor]) -> Factor:
    different: list[Factor] = []
    for factor in factors:
        for place, other in enumerate(different):
            if _is_same(factor.A, other.A):
                different[place] = Factor(other.A, other.B + factor.B)
                break
        else:
            different.append(factor)
    return Factor(
        torch.cat([factor.A for factor in different]),
        torch.cat([factor.B for factor in different], 1),
    )
