"""Gauges: rules that pick one of the many factorisations of the same ΔW.

B·A = (B·R)(R⁻¹·A) for any invertible R.  Balancing (A·Aᵀ = Bᵀ·B = S, see `canonical`) leaves R
orthogonal at most; a gauge fixes what is left against a frozen reference, so that equal updates
get equal vectors and similar updates get similar ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lorasynth.core.errors import LayoutError
from lorasynth.core.registry import Registry


class Balanced(NamedTuple):
    """What a gauge sees of balanced factors (A, B) and a reference (A₀, B₀), in float64.

    All of it is r x r, with axes `n m`: adapters and modules.
    """

    #: Singular values S of ΔW, greatest first.
    spectrum: Float[Tensor, "n m r"]
    #: A·A₀ᵀ.
    A: Float[Tensor, "n m r r"]
    #: Bᵀ·B₀.
    B: Float[Tensor, "n m r r"]
    #: A₀·A₀ᵀ, without axis n.
    reference: Float[Tensor, "*n m r r"]


class Gauge(ABC):
    """One rule."""

    #: Whether `change` needs a reference; without one the raw factors stand in for it.
    needs_reference: ClassVar[bool] = True
    #: Whether R is orthogonal, so that A·Aᵀ = Bᵀ·B is kept; if not, A becomes the reference's.
    balanced: ClassVar[bool] = True

    @abstractmethod
    def change(self, factors: Balanced) -> Float[Tensor, "n m r r"]:
        """R, which makes B·R and R⁻¹·A of each module's balanced factors."""


GAUGES: Registry[type[Gauge]] = Registry("gauge", "lorasynth.gauges")


@GAUGES.register("none")
class NoGauge(Gauge):
    """Signs and rotations stay as the singular value decomposition gave them."""

    needs_reference = False

    def change(self, factors: Balanced) -> Float[Tensor, "n m r r"]:
        """Change nothing."""
        return torch.diag_embed(torch.ones_like(factors.spectrum))


@GAUGES.register("random_sign")
class RandomSignGauge(Gauge):
    """Each singular pair gets a random sign: what signs left to chance cost a study.

    The sign is a hash of the singular value, so an adapter gets the same ones in any batch.
    """

    needs_reference = False

    #: 2⁶⁴ over the golden ratio (Knuth 1998, section 6.4), as a signed number.
    multiplier: ClassVar[int] = 0x9E3779B97F4A7C15 - (1 << 64)

    def change(self, factors: Balanced) -> Float[Tensor, "n m r r"]:
        """Flip the pairs whose hash is negative."""
        # float32 hides how the last bits of a sum in float64 depend on the batch
        numbers = factors.spectrum.float().view(torch.int32).long()
        return _flip(numbers * self.multiplier < 0)


@GAUGES.register("sign")
class SignGauge(Gauge):
    """Each singular pair gets the sign that makes its product with the reference's positive."""

    def change(self, factors: Balanced) -> Float[Tensor, "n m r r"]:
        """Flip the pairs that point away from the reference's pair of the same number."""
        return _flip((factors.A + factors.B).diagonal(dim1=-2, dim2=-1) < 0)


@GAUGES.register("procrustes")
class ProcrustesGauge(Gauge):
    """The orthogonal R that brings [Aᵀ; B]·R nearest to the reference (Schönemann 1966).

    Unlike signs it is continuous where singular values cross, and equals the sign gauge at rank 1.
    """

    def change(self, factors: Balanced) -> Float[Tensor, "n m r r"]:
        """Rotate each module's factors onto the reference's."""
        overlap = factors.A + factors.B
        if overlap.shape[-1] == 1:
            return _flip(overlap[..., 0] < 0)
        u, _, vh = solve_batch(torch.linalg.svd, overlap)
        rotation: Tensor = u @ vh
        return rotation


@GAUGES.register("shared")
class SharedGauge(Gauge):
    """A is the reference's A, so B = ΔW·A⁺ and the vector is linear in ΔW.

    For adapters that were trained with one shared frozen A: their updates have the rows of that A
    as input space, so nothing is lost.
    """

    balanced = False

    #: Largest part of ΔW, relative to its norm, that may lie outside the reference's row space.
    tolerance: ClassVar[float] = 1e-3

    def change(self, factors: Balanced) -> Float[Tensor, "n m r r"]:
        """Write each module's update in the reference's A.

        Raises:
            LayoutError: an update does not lie in the row space of the reference's A.
        """
        change: Tensor = factors.A @ torch.linalg.pinv(factors.reference, hermitian=True)
        whole = factors.spectrum.sum(-1)
        kept = (change * factors.A).sum((-2, -1))
        if (whole - kept > self.tolerance**2 * whole).any():
            raise LayoutError(
                "the gauge 'shared' needs adapters trained with the reference's own A, but "
                "another A was found: use 'sign' or 'procrustes'"
            )
        return change


def _flip(turned: Bool[Tensor, "n m r"]) -> Float[Tensor, "n m r r"]:
    return torch.diag_embed(torch.where(turned, -1.0, 1.0).double())


def solve_batch(
    solve: Callable[[Tensor], tuple[Tensor, ...]], matrices: Float[Tensor, "*n r r"]
) -> tuple[Tensor, ...]:
    """`solve` (such as `torch.linalg.eigh`) of each matrix, on all of the processor's threads.

    torch solves those of a batch one after the other.
    """
    threads = torch.get_num_threads() if matrices.device.type == "cpu" else 1
    parts = matrices.flatten(0, -3).chunk(threads)
    with ThreadPoolExecutor(len(parts)) as pool:
        solved = list(pool.map(solve, parts))
    batch = matrices.shape[:-2]
    return tuple(torch.cat(part).unflatten(0, batch) for part in zip(*solved, strict=True))
