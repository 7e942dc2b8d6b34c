"""Adapters of any rank and any A brought into a layout: what the layout cannot hold is left out."""

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.canonical import canonicalise
from lorasynth.adapter.factors import Factor, Factors, map_factors, stack, unstack
from lorasynth.adapter.gauge import GAUGES
from lorasynth.adapter.layout import Layout, Slot
from lorasynth.adapter.lowrank import truncated
from lorasynth.core.errors import LayoutError


@torch.no_grad()
def project(
    factors: Factors, layout: Layout, gauge: str = "none", reference: Factors | None = None
) -> Float[Tensor, " D"]:
    """The canonical vector of the adapter of a layout that is nearest to a given one.

    In a gauge that writes updates in the reference's A, each ΔW is projected on its rows; else on
    its greatest singular values (Eckart & Young 1936).  Modules that the adapter lacks are zeros.

    Args:
        factors: one adapter, without batch axis, of any modules and ranks.
        layout: of the vector.
        gauge: of the vector.
        reference: what the gauge aligns with, in the layout; None where it needs nothing.

    Raises:
        LayoutError: the adapter shares no module with the layout, or has other widths in one.
    """
    _require_kinship(factors, layout)
    given = map_factors(lambda part: part.float(), factors)
    if reference is not None and not GAUGES.get(gauge).balanced:
        rows = {
            slot.module: _on_rows(given, slot, reference[slot.module].A) for slot in layout.slots
        }
        return layout.flatten(rows)
    fitted = stack([{slot.module: _truncated(given, slot) for slot in layout.slots}])
    [canonical] = unstack(canonicalise(fitted, gauge, reference))
    return layout.flatten(canonical)


def _require_kinship(factors: Factors, layout: Layout) -> None:
    shared = [slot for slot in layout.slots if slot.module in factors]
    if not shared:
        raise LayoutError(
            f"an adapter must change one of the {len(layout.slots)} modules of the layout, such as "
            f"{layout.modules[0]}, but changes others, such as {next(iter(factors))}: it is made "
            "for another base model"
        )
    for slot in shared:
        factor = factors[slot.module]
        found = (factor.in_features, factor.out_features)
        if found != (slot.in_features, slot.out_features):
            raise LayoutError(
                f"{slot.module} must be {slot.in_features} -> {slot.out_features}, but is "
                f"{found[0]} -> {found[1]}: the adapter is made for another base model"
            )


def _on_rows(factors: Factors, slot: Slot, rows: Float[Tensor, "r in"]) -> Factor:
    """The slot's ΔW in terms of given rows: B·A·A₀⁺ and A₀."""
    if slot.module not in factors:
        return Factor(rows.float(), slot.zeros().B)
    factor, target = factors[slot.module], rows.double()
    change = factor.A.double() @ torch.linalg.pinv(target)
    return Factor(rows.float(), (factor.B.double() @ change).float())


def _truncated(factors: Factors, slot: Slot) -> Factor:
    """The slot's ΔW in the slot's rank: its greatest singular values, or with zeros beside them."""
    factor = factors.get(slot.module)
    if factor is not None and factor.rank > slot.rank:
        factors = {slot.module: truncated(factor, slot.rank).factor}
    return slot.factor_of(factors)
