"""Factors in half precision: a power of two moves between A and B, so that both stay in range.

A scale that is folded into B may put its numbers below what float16 resolves, or above what it
holds.  B·2^k and A·2^-k are the same update, and powers of two round nothing.
"""

import math
from dataclasses import replace

import torch

from lorasynth.adapter.adapter import Adapter
from lorasynth.adapter.factors import Factor
from lorasynth.core.errors import LayoutError


def narrowed(adapter: Adapter, dtype: torch.dtype) -> Adapter:
    """The adapter in another floating-point type.

    Raises:
        LayoutError: the type cannot hold its numbers.
    """
    factors = {module: _narrowed(factor, dtype) for module, factor in adapter.factors.items()}
    for module, factor in factors.items():
        if not all(part.isfinite().all() for part in factor):
            name = str(dtype).removeprefix("torch.")
            raise LayoutError(
                f"numbers must fit into {name}, at most {torch.finfo(dtype).max:g}, but those of "
                f"{module} do not: choose --dtype float32 or bfloat16"
            )
    return replace(adapter, factors=factors)


def _narrowed(factor: Factor, dtype: torch.dtype) -> Factor:
    if dtype == torch.float16 and factor.B.dtype != dtype:
        limits = torch.finfo(dtype)
        sizes = [part.abs() for part in factor]
        largest = [float(size.max()) for size in sizes]
        small = any(bool(((size > 0) & (size < limits.tiny)).any()) for size in sizes)
        if min(largest) > 0 and (small or max(largest) > limits.max):
            shift = round(math.log2(largest[0] / largest[1]) / 2)
            factor = Factor(factor.A * 2.0**-shift, factor.B * 2.0**shift)
    return Factor(factor.A.to(dtype), factor.B.to(dtype))
