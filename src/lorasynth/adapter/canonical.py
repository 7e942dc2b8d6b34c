"""Canonical form: ΔW = U·S·Vᵀ, B = U·√S, A = √S·Vᵀ, then the gauge (paper, section 3.2).

The singular value decomposition is made of the factors: with the QR decompositions Aᵀ = Qa·Ra and
B = Qb·Rb, only the r x r core Rb·Raᵀ is decomposed, never the out x in matrix.  All adapters and
all modules of equal shape are one batch.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.factors import Factor, Factors, map_factors, pad_rank
from lorasynth.adapter.gauge import GAUGES
from lorasynth.adapter.layout import Layout
from lorasynth.errors import LayoutError


def canonicalise(
    factors: Factors, gauge: str = "none", reference: Factors | None = None
) -> Factors:
    """Bring stacked adapters into canonical form; ΔW is kept.

    Args:
        factors: Factors with one batch axis n, in any floating-point type.
        gauge: Name of a gauge (see `gauge`).
        reference: Factors without batch axis that the gauge aligns with (`choose_reference`).

    Returns:
        Factors with axis n, in float32 (float64 if the input is).

    Raises:
        ConfigError: no such gauge.
        LayoutError: the gauge needs a reference, or the reference has another layout.
    """
    rule = GAUGES.get(gauge)()
    if rule.needs_reference and reference is None:
        raise LayoutError(f"the gauge {gauge!r} needs a reference: see choose_reference")
    if reference is not None:
        Layout.from_factors(factors).require(reference)
    return _by_group(factors, reference, lambda group, target: rule.fix(balance(group), target))


def choose_reference(factors: Factors, gauge: str) -> Factors:
    """The reference that a collection starting with these stacked adapters is aligned with.

    It depends on the first adapter alone, so a collection has the same vectors whether it was made
    at once or in parts.  For gauges that keep A and B balanced it is that adapter's balanced form;
    for the others it is the adapter as it is.
    """
    first = map_factors(lambda tensor: tensor[:1], factors)
    if GAUGES.get(gauge).balanced:
        first = canonicalise(first)
    return map_factors(lambda tensor: _upcast(tensor[0]).clone(), first)


def balance(factor: Factor) -> Factor:
    """Balanced factors of the same ΔW, with any batch axes: A·Aᵀ = Bᵀ·B = S."""
    factor = Factor(_upcast(factor.A), _upcast(factor.B))
    return _balance_rank_one(factor) if factor.rank == 1 else _balance(factor)


def _balance_rank_one(factor: Factor) -> Factor:
    """Closed form: share the norms |a| and |b| equally; an update that is zero gives zeros."""
    a = torch.linalg.vector_norm(factor.A, dim=(-2, -1), keepdim=True).sqrt()
    b = torch.linalg.vector_norm(factor.B, dim=(-2, -1), keepdim=True).sqrt()
    nonzero = (a > 0) & (b > 0)
    scale_a = torch.where(nonzero, b / a.where(nonzero, 1), 0)
    scale_b = torch.where(nonzero, a / b.where(nonzero, 1), 0)
    return Factor(factor.A * scale_a, factor.B * scale_b)


def _balance(factor: Factor) -> Factor:
    in_basis, in_core = torch.linalg.qr(factor.A.mT)
    out_basis, out_core = torch.linalg.qr(factor.B)
    u, s, vh = torch.linalg.svd(out_core @ in_core.mT, full_matrices=False)
    root = s.sqrt()
    return pad_rank(
        Factor(
            A=(root[..., :, None] * vh) @ in_basis.mT,
            B=out_basis @ (u * root[..., None, :]),
        ),
        factor.rank,
    )


def _by_group(
    factors: Factors, reference: Factors | None, operation: Callable[[Factor, Factor], Factor]
) -> Factors:
    """Apply an operation on factors with axes `n m` to each group of modules of equal shape."""
    done: dict[str, Factor] = {}
    for modules in Layout.from_factors(factors).groups():
        group = _gather(factors, modules)
        target = group if reference is None else _cast(_gather(reference, modules), group)
        result = operation(group, target)
        for index, module in enumerate(modules):
            done[module] = Factor(result.A[:, index], result.B[:, index])
    return {module: done[module] for module in factors}


def _gather(factors: Factors, modules: tuple[str, ...]) -> Factor:
    return Factor(
        torch.stack([_upcast(factors[module].A) for module in modules], dim=-3),
        torch.stack([_upcast(factors[module].B) for module in modules], dim=-3),
    )


def _cast(reference: Factor, like: Factor) -> Factor:
    return Factor(reference.A.to(like.A), reference.B.to(like.B))


def _upcast(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """QR and SVD exist for float32 and float64 only."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
