"""Low-rank factors of an adapter, and what can be computed from them without the dense ΔW.

Factors carry any number of leading batch axes: none for one adapter, `n` for a stack of them.  The
inner product of two updates needs only r x r matrices,

    <B1·A1, B2·A2> = tr(A1ᵀ·B1ᵀ·B2·A2) = sum((B1ᵀ·B2) * (A1·A2ᵀ)),

and depends on ΔW alone, so cosines made of it are free of the gauge that the factors are in.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.utils import get_total_norm

from lorasynth.core.device import exact_device
from lorasynth.core.errors import LayoutError

#: Elements of the largest intermediate of `inner_products` (256 MB in float32).
_CHUNK_ELEMENTS = 1 << 26


class Factor(NamedTuple):
    """Low-rank update of one module, ΔW = B·A, any alpha/r scale folded into B."""

    A: Float[Tensor, "*n r in"]
    B: Float[Tensor, "*n out r"]

    @property
    def rank(self) -> int:
        """Inner width r."""
        return self.A.shape[-2]

    @property
    def in_features(self) -> int:
        """Width of the module's input."""
        return self.A.shape[-1]

    @property
    def out_features(self) -> int:
        """Width of the module's output."""
        return self.B.shape[-2]


#: Module name (as in `unet.named_modules()`) -> its factor.
Factors: TypeAlias = Mapping[str, Factor]


def map_factors(function: Callable[[Tensor], Tensor], factors: Factors) -> Factors:
    """Apply `function` to every A and B (a cast, a move, a choice of rows)."""
    return {
        module: Factor(function(factor.A), function(factor.B)) for module, factor in factors.items()
    }


def scaled(factors: Factors, strength: float) -> Factors:
    """Adapters with ΔW multiplied by `strength`."""
    return {module: Factor(factor.A, factor.B * strength) for module, factor in factors.items()}


def pad_rank(factor: Factor, rank: int) -> Factor:
    """Raise the rank by components that are zero; ΔW is the same."""
    missing = rank - factor.rank
    if missing == 0:
        return factor
    return Factor(
        torch.nn.functional.pad(factor.A, (0, 0, 0, missing)),
        torch.nn.functional.pad(factor.B, (0, missing)),
    )


def stack(adapters: Sequence[Factors]) -> Factors:
    """Stack factors of equal modules and shapes along a new first axis n.

    Raises:
        LayoutError: there is nothing to stack, or modules or shapes differ.
    """
    return _joined(adapters, torch.stack, "stack")


def concatenate(stacks: Sequence[Factors]) -> Factors:
    """Join stacks of adapters along their first axis.

    Raises:
        LayoutError: there is nothing to join, or modules or shapes differ.
    """
    return _joined(stacks, torch.cat, "concatenate", skip=1)


def unstack(factors: Factors) -> list[Factors]:
    """Split stacked factors into views of single adapters; the inverse of `stack`."""
    # One call a tensor, not one for each of its rows, takes a quarter less time.
    parts = {module: (factor.A.unbind(), factor.B.unbind()) for module, factor in factors.items()}
    return [
        {module: Factor(A[row], B[row]) for module, (A, B) in parts.items()}
        for row in range(count(factors))
    ]


def count(factors: Factors) -> int:
    """Number of adapters n in a stack."""
    return next(iter(factors.values())).A.shape[0]


def _joined(
    parts: Sequence[Factors],
    join: Callable[[list[Tensor]], Tensor],
    verb: str,
    skip: int = 0,
) -> Factors:
    """Join the factors of each module, whose shapes after the first `skip` axes are equal."""
    if not parts:
        raise LayoutError(f"to {verb} adapters there must be at least one, but none was given")
    first = _shapes(parts[0], skip)
    for index, part in enumerate(parts[1:], start=1):
        if _shapes(part, skip) != first:
            differing = sorted(dict(set(_shapes(part, skip).items()) ^ set(first.items())))
            raise LayoutError(
                f"adapters to {verb} must have the same modules and shapes, but number {index} "
                f"differs from number 0 at {differing[0]}"
            )
    return {
        module: Factor(*(join([part[module][side] for part in parts]) for side in (0, 1)))
        for module in parts[0]
    }


def _shapes(factors: Factors, skip: int) -> dict[str, tuple[torch.Size, torch.Size]]:
    return {
        module: (factor.A.shape[skip:], factor.B.shape[skip:]) for module, factor in factors.items()
    }


def require_finite(factors: Factors) -> None:
    """Check that no number is NaN or infinite.

    Raises:
        LayoutError: names the first module that holds such a number.
    """
    # one number for all says that all are finite, unless its square overflows
    if get_total_norm(tensor for factor in factors.values() for tensor in factor).isfinite():
        return
    for module, factor in factors.items():
        for name, tensor in zip("AB", factor, strict=True):
            if not torch.isfinite(tensor).all():
                kind = "NaN" if torch.isnan(tensor).any() else "infinite"
                raise LayoutError(
                    f"all numbers of an adapter must be finite, but {name} of {module} holds "
                    f"{kind} values: train it again or remove it"
                )


def inner(left: Factors, right: Factors) -> Float[Tensor, "*n"]:
    """<ΔW of left, ΔW of right> of each pair at the same place of the batch, in float64."""
    return _total(_module_inner(left[module], right[module]) for module in _common(left, right))


def norm(factors: Factors) -> Float[Tensor, "*n"]:
    """Frobenius norm of ΔW over all modules, in float64."""
    return inner(factors, factors).clamp_min(0).sqrt()


def inner_products(left: Factors, right: Factors) -> Float[Tensor, "n m"]:
    """<ΔW_i, ΔW_j> of every adapter of `left` with every adapter of `right`, in float64."""
    rows, columns = count(left), count(right)
    widest = max(left[module].rank * right[module].rank for module in _common(left, right))
    step = max(1, _CHUNK_ELEMENTS // max(1, columns * widest))
    blocks = [_block(left, right, start, start + step) for start in range(0, rows, step)]
    return torch.cat(blocks)


def cosines(left: Factors, right: Factors) -> Float[Tensor, "n m"]:
    """Cosine of ΔW between every adapter of `left` and of `right`; 0 where one of them is zero."""
    lengths = norm(left)[:, None] * norm(right)[None, :]
    return divide(inner_products(left, right), lengths)


def cosine(left: Factors, right: Factors) -> Float[Tensor, "*n"]:
    """Cosine of ΔW of each pair at the same place of the batch; 0 where one of them is zero."""
    return divide(inner(left, right), norm(left) * norm(right))


def divide(
    numerator: Float[Tensor, "*#n"], denominator: Float[Tensor, "*#n"]
) -> Float[Tensor, "*#n"]:
    """The quotient, and zero (without a gradient of NaN) where the denominator is zero."""
    return torch.where(denominator > 0, numerator / denominator.where(denominator > 0, 1), 0)


def _block(left: Factors, right: Factors, start: int, stop: int) -> Float[Tensor, "rows m"]:
    def module_block(a: Factor, b: Factor) -> Tensor:
        outputs = torch.einsum("nor,mos->nmrs", a.B[start:stop], b.B)
        inputs = torch.einsum("nri,msi->nmrs", a.A[start:stop], b.A)
        return _sum(outputs.mul_(inputs))

    return _total(module_block(left[module], right[module]) for module in _common(left, right))


def _module_inner(left: Factor, right: Factor) -> Float[Tensor, "*n"]:
    outputs = left.B.mT @ right.B
    inputs = left.A @ right.A.mT
    return _sum(outputs * inputs)


def _sum(products: Float[Tensor, "*n r s"]) -> Float64[Tensor, "*n"]:
    """In float64, into which no copy is made."""
    return products.to(exact_device(products.device)).sum(dim=(-2, -1), dtype=torch.float64)


def _common(left: Factors, right: Factors) -> list[str]:
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())[0]
        raise LayoutError(
            f"adapters must have the same modules to be compared, but only one of them has {odd}"
        )
    return list(left)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)
