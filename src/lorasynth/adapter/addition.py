"""Several adapters at once: the sum of their updates is one adapter of the sum of their ranks.

Where two share one A, as all of a library with the gauge `shared` do, they share its rows in the
sum too: (B1 + B2)·A has the rank of one.
"""

from collections.abc import Sequence

import torch

from lorasynth.adapter.factors import Factor, Factors


def add(adapters: Sequence[Factors]) -> Factors:
    """ΔW of the result is the sum of all ΔW: rows of A and columns of B one after the other.

    Equal A occur once, so the rank is that of the A that differ.

    Args:
        adapters: without batch axes; a module may be missing in some, ranks may differ.
    """
    modules = sorted({module for factors in adapters for module in factors})
    return {
        name: _sum([factors[name] for factors in adapters if name in factors]) for name in modules
    }


def _sum(factors: Sequence[Factor]) -> Factor:
    different: list[Factor] = []
    for factor in factors:
        for place, other in enumerate(different):
            if torch.equal(factor.A, other.A):
                different[place] = Factor(other.A, other.B + factor.B)
                break
        else:
            different.append(factor)
    return Factor(
        torch.cat([factor.A for factor in different]),
        torch.cat([factor.B for factor in different], 1),
    )
