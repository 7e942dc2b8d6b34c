"""Canonical form: ΔW = U·S·Vᵀ, B = U·√S, A = √S·Vᵀ, then the gauge (paper, section 3.2).

The factors are read twice: for their inner products, and to be changed.  All that lies between is
r x r, and batched over adapters and over modules of equal rank, whatever their widths.  With
A·Aᵀ = L·Lᵀ (Cholesky) and Lᵀ·(Bᵀ·B)·L = V·S²·Vᵀ, balanced factors are

    A' = (√S·Vᵀ·L⁻¹)·A,   B' = B·(L·V/√S)

(Laub et al. 1987, there for control systems).  The two changes are inverses of each other however
L and S were rounded, so ΔW is kept.  A and Bᵀ are r rows each and are treated alike: what belongs
to both is one tensor with a first axis of 2.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.factors import Factor, Factors, map_factors
from lorasynth.adapter.gauge import GAUGES, Balanced, Gauge
from lorasynth.adapter.layout import Layout
from lorasynth.errors import LayoutError

#: Numbers of one matrix that are worked on at once, so that they stay in the processor's cache.
_CHUNK_ELEMENTS = 1 << 19

#: Added to the squared length of each row, relative to it: well above the rounding of float64, so
#: that dependent rows have a Cholesky decomposition too.  L need not be exact.
_RIDGE = 1e-13

#: Singular values below this part of the largest one become zero: the ridge can make up to 3e-7.
_FLOOR = 1e-6

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
    doubled = map_factors(Tensor.double, reference) if reference else None
    # what is r x r of modules of equal rank can be one batch, whatever their widths
    for modules in layout.groups(attrgetter("rank")):
        targets = [doubled[module] for module in modules] if doubled else None
        scratch = _Scratch([factors[module] for module in modules])
        for rows in scratch.chunks:
            raw = [_cut(factors[module], rows) for module in modules]
            results = [_cut(done[module], rows) for module in modules]
            _fix(rule, raw, targets, results, scratch)
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


def balance(factor: Factor) -> Factor:
    """Balanced factors of the same ΔW, with any batch axes: A·Aᵀ = Bᵀ·B = S."""
    stacked = Factor(*(tensor.reshape(-1, *tensor.shape[-2:]) for tensor in factor))
    balanced = canonicalise({"": stacked})[""]
    return Factor(balanced.A.view_as(factor.A), balanced.B.view_as(factor.B))


class _Scratch:
    """Memory for one matrix, used again and again: new pages cost more than the work in them.

    Args:
        factors: All that is to be worked on, chunk by chunk.
    """

    def __init__(self, factors: Sequence[Factor]) -> None:
        widest = max(tensor[0].numel() for factor in factors for tensor in factor)
        self._count = len(factors[0].A)
        self._step = max(1, _CHUNK_ELEMENTS // widest)
        size = min(self._step, self._count) * widest
        device = factors[0].A.device
        self._rows: Tensor = torch.empty(size, dtype=torch.float64, device=device)
        self._product: Tensor = torch.empty_like(self._rows)

    @property
    def chunks(self) -> Iterator[slice]:
        """Adapters whose widest matrix fits into the memory."""
        for start in range(0, self._count, self._step):
            yield slice(start, start + self._step)

    def rows(self, matrix: Float[Tensor, "n r w"]) -> Float[Tensor, "n r w"]:
        """The matrix in float64, because inner products square the condition number.

        At rank 1 there is none, so it stays as it is.
        """
        if matrix.shape[-2] == 1:
            return matrix.to(_wide(matrix.dtype))
        return self._rows[: matrix.numel()].view(matrix.shape).copy_(matrix)

    def product(
        self, left: Float[Tensor, "n r r"], rows: Float[Tensor, "n r w"]
    ) -> Float[Tensor, "n r w"]:
        """left·rows."""
        product = self._product[: rows.numel()].view(rows.shape)
        torch.matmul(left, rows, out=product)
        return product


def _fix(
    rule: Gauge,
    raw: Sequence[Factor],
    targets: Sequence[Factor] | None,
    results: Sequence[Factor],
    scratch: _Scratch,
) -> None:
    """Write the canonical form of m modules of one rank, each with axis n, to `results`."""
    own, cross, target = _products(raw, targets, scratch)
    change, spectrum = _balance(own)
    overlap = change @ cross
    turn = rule.change(Balanced(spectrum, overlap[0], overlap[1], target))
    change = turn.mT @ change
    for module, (factor, result) in enumerate(zip(raw, results, strict=True)):
        for side, (matrix, goal) in enumerate(zip(_sides(factor), _sides(result), strict=True)):
            _change(change[side, :, module], scratch.rows(matrix), goal, scratch)
        if targets and not rule.balanced:
            result.A.copy_(targets[module].A)


def _products(
    raw: Sequence[Factor], targets: Sequence[Factor] | None, scratch: _Scratch
) -> tuple[Float[Tensor, "2 n m r r"], Float[Tensor, "2 n m r r"], Float[Tensor, "*n m r r"]]:
    """A·Aᵀ and Bᵀ·B; A·A₀ᵀ and Bᵀ·B₀; A₀·A₀ᵀ.  Without targets the factors stand in for them."""
    n, rank = len(raw[0].A), raw[0].rank
    own = torch.empty(2, n, len(raw), rank, rank, dtype=torch.float64, device=raw[0].A.device)
    cross = torch.empty_like(own) if targets else own
    for module, factor in enumerate(raw):
        for side, matrix in enumerate(_sides(factor)):
            rows = scratch.rows(matrix)
            own[side, :, module] = rows @ rows.mT
            if targets:
                cross[side, :, module] = rows @ _sides(targets[module])[side].to(rows).mT
    if not targets:
        return own, cross, own[0]
    return own, cross, torch.stack([target.A @ target.A.mT for target in targets])


def _balance(
    own: Float[Tensor, "2 n m r r"],
) -> tuple[Float[Tensor, "2 n m r r"], Float[Tensor, "n m r"]]:
    """What A and Bᵀ are to be multiplied with, and the singular values S, greatest first."""
    if own.shape[-1] == 1:
        # closed form: share the norms |a| and |b| equally
        root = own.prod(0) ** 0.25
        return _divide(root.expand_as(own), own.sqrt()), root[..., 0].square()
    lengths = own[0].diagonal(dim1=-2, dim2=-1).clamp_min(_TINY**2).sqrt()
    cosines = own[0] / lengths[..., :, None] / lengths[..., None, :]
    cosines.diagonal(dim1=-2, dim2=-1).add_(_RIDGE)
    lower = lengths[..., None] * torch.linalg.cholesky(cosines)
    squares, vectors = torch.linalg.eigh(lower.mT @ own[1] @ lower)
    spectrum, vectors = squares.clamp_min(0).sqrt().flip(-1), vectors.flip(-1)
    least = (_FLOOR * spectrum[..., :1]).clamp_min(_TINY)
    spectrum = spectrum.where(spectrum > least, 0)
    root = spectrum.sqrt()[..., None]
    for_a = torch.linalg.solve_triangular(lower.mT, vectors, upper=True).mT
    return torch.stack((root * for_a, _divide((lower @ vectors).mT, root))), spectrum


def _change(
    change: Float[Tensor, "n r r"],
    rows: Float[Tensor, "n r w"],
    goal: Float[Tensor, "n r w"],
    scratch: _Scratch,
) -> None:
    """Write change·rows to `goal`."""
    if rows.shape[-2] == 1:
        torch.mul(rows, change.to(rows), out=goal)
    else:
        goal.copy_(scratch.product(change, rows))


def _divide(
    numerator: Float[Tensor, "*#n"], denominator: Float[Tensor, "*#n"]
) -> Float[Tensor, "*#n"]:
    """The quotient, and zero where the denominator is zero."""
    return torch.where(denominator > 0, numerator / denominator, 0)


def _sides(factor: Factor) -> tuple[Float[Tensor, "*n r in"], Float[Tensor, "*n r out"]]:
    """A and Bᵀ."""
    return factor.A, factor.B.mT


def _cut(factor: Factor, rows: slice) -> Factor:
    return Factor(factor.A[rows], factor.B[rows])


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type of results: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
