"""Several adapters as one: the sum of their updates, or what is left of it when they are pruned.

The sum is exact and has the sum of the ranks.  Where two share one A, as all of a library with the
gauge `shared` do, they share its rows in the sum too: (B1 + B2)·A has the rank of one.  TIES (Yadav
et al. 2023) and DARE (Yu et al. 2023) are PEFT's own functions, of the dense updates.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.adapter import Adapter, AdapterMetadata
from lorasynth.adapter.factors import Factor, Factors, map_factors, scaled
from lorasynth.adapter.layout import Layout, Slot
from lorasynth.adapter.lowrank import Nearest, of_matrix, relative_error
from lorasynth.core.errors import ConfigError, LayoutError


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


def alike(adapters: Sequence[Factors]) -> list[Factors]:
    """The same adapters with the same modules and ranks, so that they can be stacked.

    What one lacks is zero.

    Raises:
        LayoutError: a module has other widths in another.
    """
    slots: dict[str, Slot] = {}
    for one in adapters:
        for slot in Layout.from_factors(one).slots:
            kept = slots.setdefault(slot.module, slot)
            if replace(kept, rank=slot.rank) != slot:
                raise LayoutError(
                    f"LoRAs of one image must have the same widths, but {slot.module} is "
                    f"{(kept.in_features, kept.out_features)} in one and "
                    f"{(slot.in_features, slot.out_features)} in another"
                )
            slots[slot.module] = max(kept, slot, key=lambda slot: slot.rank)
    return [{module: slot.factor_of(one) for module, slot in slots.items()} for one in adapters]


METHODS = ("sum", "ties", "dare")


def merged(
    adapters: Sequence[Adapter], weights: Sequence[float], method: str, density: float, rank: int
) -> tuple[Adapter, float]:
    """One adapter of several of one base model, and its relative error.

    Args:
        adapters: at least one.
        weights: of each.
        method: one of `METHODS`.
        density: share of the numbers that `ties` and `dare` keep.
        rank: the highest that these make; the ranks of a `sum` add up.

    Raises:
        ConfigError: no such method.
        LayoutError: the adapters are of other base models, or have other widths.
    """
    if method not in METHODS:
        raise ConfigError(f"--method must be one of {', '.join(METHODS)}, but is {method!r}")
    _require_kinship(adapters)
    parts: list[Factors] = [
        scaled(map_factors(lambda tensor: tensor.float(), one.factors), weight)
        for one, weight in zip(adapters, weights, strict=True)
    ]
    kernels = {module: k for one in adapters for module, k in one.kernels.items()}
    phrases = dict.fromkeys(one.metadata.trigger_phrase for one in adapters)
    metadata = AdapterMetadata(
        base_fingerprint=adapters[0].metadata.base_fingerprint,
        trigger_phrase=", ".join(phrase for phrase in phrases if phrase),
        synthesised=any(one.metadata.synthesised for one in adapters),
        extra={"merged": method, "weights": " ".join(f"{weight:g}" for weight in weights)},
    )
    if method == "sum":
        return Adapter(add(parts), metadata, kernels), 0.0
    made = {
        module: _pruned([one[module] for one in parts if module in one], method, density, rank)
        for module in sorted({module for one in parts for module in one})
    }
    factors = {module: part.factor for module, part in made.items()}
    return replace(adapters[0], factors=factors, metadata=metadata, kernels=kernels), (
        relative_error(made.values())
    )


def _require_kinship(adapters: Sequence[Adapter]) -> None:
    bases = {one.metadata.base_fingerprint for one in adapters} - {""}
    if len(bases) > 1:
        raise LayoutError(
            f"LoRAs to merge must be of one base model, not of {' and '.join(sorted(bases))}"
        )
    shapes: dict[str, tuple[object, ...]] = {}
    for one in adapters:
        for slot in one.layout.slots:
            shape = (slot.in_features, slot.out_features, slot.kernel)
            if shapes.setdefault(slot.module, shape) != shape:
                raise LayoutError(
                    f"LoRAs to merge must have the same widths, but {slot.module} is "
                    f"{shapes[slot.module][:2]} in one and {shape[:2]} in another"
                )


@torch.no_grad()
def _pruned(factors: Sequence[Factor], method: str, density: float, rank: int) -> Nearest:
    from peft.utils.merge_utils import dare_linear, ties

    dense = [factor.B @ factor.A for factor in factors]
    ones = torch.ones(len(dense))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a density of 1 prunes nothing, as it should
        torch.manual_seed(0)
        made = (ties if method == "ties" else dare_linear)(dense, ones, density)
    return of_matrix(made, rank)
