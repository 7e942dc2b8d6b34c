"""Canonical form: ΔW = U·S·Vᵀ, B = U·√S, A = √S·Vᵀ, then the gauge (paper, section 3.2).

The factors are read twice: for their inner products, and to be changed.  All that lies between is
r x r, and batched over adapters and over modules of equal rank, whatever their widths.  At rank 1
it is a closed form: a and b share their lengths equally.  Above, with
A·Aᵀ = L·Lᵀ (Cholesky) and Lᵀ·(Bᵀ·B)·L = V·S²·Vᵀ, balanced factors are

    A' = (√S·Vᵀ·L⁻¹)·A,   B' = B·(L·V/√S)

(Laub et al. 1987, there for control systems).  The two changes are inverses of each other however
L and S were rounded, so ΔW is kept.  Inner products square the condition number, so those of B are
summed in float64.  The rest stays in float32 as long as A's rows are far from dependent: its error
is then that of rounding A and B themselves.

A and Bᵀ are r rows each and are treated alike: m modules are 2m such matrices in turn.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.factors import Factors, divide, map_factors
from lorasynth.adapter.gauge import GAUGES, Balanced, Gauge, solve_batch
from lorasynth.adapter.layout import Layout
from lorasynth.core.device import exact_device
from lorasynth.core.errors import LayoutError

#: 2m matrices of one rank, r rows each, with or without a batch axis: A, Bᵀ, A, Bᵀ, ...
Matrices: TypeAlias = list[Float[Tensor, "*_ r _"]]

#: Numbers of one matrix that are worked on at once, so that they stay in the processor's cache.
_CHUNK_ELEMENTS = 1 << 19

#: Added to the squared length of each row, relative to it: well above the rounding of float64, so
#: that dependent rows have a Cholesky decomposition too.  L need not be exact.
_RIDGE = 1e-13

#: Singular values below this part of the largest one become zero: the ridge can make up to 3e-7.
_FLOOR = 1e-6

#: Least distance of a row of A from the span of those before it, relative to its length, that
#: lets float32 do: the error of what is computed grows with the square of its inverse.
_INDEPENDENT = 0.1

#: Lengths and singular values below this are those of zeros.
_TINY = 1e-30


@torch.no_grad()
def canonicalise(
    factors: Factors,
    gauge: str = "none",
    reference: Factors | None = None,
    out: Factors | None = None,
) -> Factors:
    """Bring stacked adapters into canonical form; ΔW is kept.

    Args:
        factors: Factors with one batch axis n, in any floating-point type.
        gauge: Name of a gauge (see `gauge`).
        reference: Factors without batch axis that the gauge aligns with (`choose_reference`).
        out: What to write the result to, such as views of an n x D matrix; default: new memory.

    Returns:
        Factors with axis n, in float32 (float64 if the input is).

    Raises:
        ConfigError: no such gauge.
        LayoutError: the gauge needs a reference, or the reference or `out` has another layout.
    """
    rule = GAUGES.get(gauge)()
    if rule.needs_reference and reference is None:
        raise LayoutError(f"the gauge {gauge!r} needs a reference: see choose_reference")
    layout = Layout.from_factors(factors)
    for other in (reference, out):
        if other is not None:
            layout.require(other)
    done = out or map_factors(lambda x: torch.empty_like(x, dtype=_wide(x.dtype)), factors)
    device = next(iter(factors.values())).A.device
    if (home := exact_device(device)) != device:
        here = map_factors(lambda x: x.to(home), factors)
        there = reference and map_factors(lambda x: x.to(home), reference)
        for module, found in canonicalise(here, gauge, there).items():
            done[module].A.copy_(found.A)
            done[module].B.copy_(found.B)
        return done
    # what is r x r of modules of equal rank can be one batch, whatever their widths
    for modules in layout.groups(attrgetter("rank")):
        raw, results = _matrices(factors, modules), _matrices(done, modules)
        targets = _matrices(reference, modules) if reference and rule.needs_reference else None
        fix = _fix_vectors if raw[0].shape[-2] == 1 else _fix_matrices
        for rows in _chunks(raw):
            fix(rule, [x[rows] for x in raw], targets, [x[rows] for x in results])
        if targets and not rule.balanced:
            for result, target in zip(results[::2], targets[::2], strict=True):
                result.copy_(target)
    return done


def choose_reference(factors: Factors, gauge: str) -> Factors:
    """The reference that a collection starting with these stacked adapters is aligned with.

    It depends on the first adapter alone, so a collection has the same vectors whether it was made
    at once or in parts.  For gauges that keep A and B balanced it is that adapter's balanced form;
    for the others it is the adapter as it is.
    """
    first = map_factors(lambda tensor: tensor[:1], factors)
    if GAUGES.get(gauge).balanced:
        first = canonicalise(first)
    return map_factors(lambda tensor: tensor[0].to(_wide(tensor.dtype), copy=True), first)


def _chunks(matrices: Matrices) -> Iterator[slice]:
    """Adapters whose widest matrix stays in the processor's cache."""
    step = max(1, _CHUNK_ELEMENTS // max(matrix[0].numel() for matrix in matrices))
    for start in range(0, len(matrices[0]), step):
        yield slice(start, start + step)


def _fix_vectors(rule: Gauge, raw: Matrices, targets: Matrices | None, results: Matrices) -> None:
    """Write the canonical form of 2m vectors, which are factors of rank 1, to `results`."""
    wide = _wide(raw[0].dtype)
    vectors = [x[:, 0].to(wide) for x in raw]
    lengths = torch.stack([torch.linalg.vector_norm(x, dim=-1) for x in vectors], 1).double()
    spectrum = lengths.unflatten(1, (-1, 2)).prod(-1)
    change = divide(spectrum.sqrt().repeat_interleave(2, 1), lengths)
    if targets:
        pairs = zip(vectors, targets, strict=True)
        overlap = change * torch.stack([torch.linalg.vecdot(x, y.to(wide)) for x, y in pairs], 1)
    else:
        overlap = change * lengths.square()
    turn = rule.change(_balanced(spectrum[..., None], overlap[..., None, None], targets))
    change *= turn[..., 0, 0].repeat_interleave(2, 1)
    for index, (x, result) in enumerate(zip(vectors, results, strict=True)):
        torch.mul(x, change[:, index, None].to(wide), out=result[:, 0])


def _fix_matrices(rule: Gauge, raw: Matrices, targets: Matrices | None, results: Matrices) -> None:
    """Write the canonical form of 2m matrices of one rank to `results`."""
    own, cross, lower, dtype = _products(raw, targets)
    change, spectrum = _balance(lower, own)
    turn = rule.change(_balanced(spectrum, change @ cross, targets))
    change = turn.mT.repeat_interleave(2, 1) @ change
    for index, (matrix, result) in enumerate(zip(raw, results, strict=True)):
        result.copy_(change[:, index].to(dtype) @ matrix.to(dtype))


def _balanced(
    spectrum: Float[Tensor, "n m r"],
    overlap: Float[Tensor, "n sides r r"],
    targets: Matrices | None,
) -> Balanced:
    """What the gauge sees; without targets the factors stand in for them."""
    if targets:
        target = torch.stack([a.double() @ a.double().mT for a in targets[::2]])
    else:
        target = overlap[0, ::2]
    return Balanced(spectrum, overlap[:, ::2], overlap[:, 1::2], target)


def _products(
    raw: Matrices, targets: Matrices | None
) -> tuple[
    Float[Tensor, "n sides r r"],
    Float[Tensor, "n sides r r"],
    Float[Tensor, "n m r r"],
    torch.dtype,
]:
    """A·Aᵀ and Bᵀ·B; A·A₀ᵀ and Bᵀ·B₀; L of A; and the type that is precise enough for this A."""
    n, rank, _ = raw[0].shape
    own = torch.empty(n, len(raw), rank, rank, dtype=torch.float64, device=raw[0].device)
    cross = torch.empty_like(own) if targets else own

    def multiply(side: int, dtype: torch.dtype) -> None:
        for index in range(side, len(raw), 2):
            rows = raw[index].to(dtype)
            own[:, index] = rows @ rows.mT
            if targets:
                cross[:, index] = rows @ targets[index].to(dtype).mT

    multiply(1, torch.float64)
    for dtype in (_wide(raw[0].dtype), torch.float64):
        multiply(0, dtype)
        lower, independent = _cholesky(own[:, ::2])
        if independent:
            break
    return own, cross, lower, dtype


def _cholesky(squares: Float[Tensor, "n m r r"]) -> tuple[Float[Tensor, "n m r r"], bool]:
    """L with L·Lᵀ = A·Aᵀ, and whether all rows of A are far from dependent."""
    lengths = squares.diagonal(dim1=-2, dim2=-1).clamp_min(_TINY**2).sqrt()
    cosines = squares / lengths[..., :, None] / lengths[..., None, :]
    cosines.diagonal(dim1=-2, dim2=-1).add_(_RIDGE)
    lower, failed = torch.linalg.cholesky_ex(cosines)
    distances = lower.diagonal(dim1=-2, dim2=-1)
    independent = not failed.any() and bool((distances > _INDEPENDENT).all())
    return lengths[..., None] * lower, independent


def _balance(
    lower: Float[Tensor, "n m r r"], own: Float[Tensor, "n sides r r"]
) -> tuple[Float[Tensor, "n sides r r"], Float[Tensor, "n m r"]]:
    """What A and Bᵀ are to be multiplied with, and the singular values S, greatest first."""
    squares, vectors = solve_batch(torch.linalg.eigh, lower.mT @ own[:, 1::2] @ lower)
    spectrum, vectors = squares.clamp_min(0).sqrt().flip(-1), vectors.flip(-1)
    least = (_FLOOR * spectrum[..., :1]).clamp_min(_TINY)
    spectrum = spectrum.where(spectrum > least, 0)
    root = spectrum.sqrt()[..., None]
    for_a = torch.linalg.solve_triangular(lower.mT, vectors, upper=True).mT
    change = torch.stack((root * for_a, divide((lower @ vectors).mT, root)), 2)
    return change.flatten(1, 2), spectrum


def _matrices(factors: Factors, modules: Sequence[str]) -> Matrices:
    """A and Bᵀ of each module in turn."""
    return [x for module in modules for x in (factors[module].A, factors[module].B.mT)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type of results: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
