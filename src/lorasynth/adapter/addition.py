"""Several adapters at once: the sum of their updates is one adapter of the sum of their ranks."""

from collections.abc import Sequence

import torch

from lorasynth.adapter.factors import Factor, Factors


def add(adapters: Sequence[Factors]) -> Factors:
    """ΔW of the result is the sum of all ΔW: rows of A and columns of B one after the other.

    Args:
        adapters: without batch axes; a module may be missing in some, ranks may differ.
    """
    modules = sorted({module for factors in adapters for module in factors})
    present = {name: [factors[name] for factors in adapters if name in factors] for name in modules}
    return {
        name: Factor(
            torch.cat([factor.A for factor in found]), torch.cat([factor.B for factor in found], 1)
        )
        for name, found in present.items()
    }
