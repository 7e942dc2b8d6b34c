"""Gauges: rules that pick one of the many factorisations of the same ΔW.

B·A = (B·R)(R⁻¹·A) for any invertible R.  Balancing (A·Aᵀ = Bᵀ·B = S, see `canonical`) leaves R
orthogonal at most; a gauge fixes what is left against a frozen reference, so that equal updates
get equal vectors and similar updates get similar ones.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter.factors import Factor
from lorasynth.errors import LayoutError
from lorasynth.registry import Registry


class Gauge(ABC):
    """One rule.  All factors it sees have axes `n m`: adapters and modules of equal shape."""

    #: Whether `fix` needs a reference.
    needs_reference: ClassVar[bool] = True
    #: Whether `fix` keeps A·Aᵀ = Bᵀ·B.
    balanced: ClassVar[bool] = True

    @abstractmethod
    def fix(self, factor: Factor, reference: Factor) -> Factor:
        """Choose the factorisation of balanced factors.

        Args:
            factor: Balanced factors with axes `n m`.
            reference: What to align with, with axis `m`.
        """


GAUGES: Registry[type[Gauge]] = Registry("gauge", "lorasynth.gauges")


@GAUGES.register("none")
class NoGauge(Gauge):
    """Signs and rotations stay as the singular value decomposition gave them."""

    needs_reference = False

    def fix(self, factor: Factor, reference: Factor) -> Factor:  # noqa: ARG002
        """Return the factors as they are."""
        return factor


@GAUGES.register("sign")
class SignGauge(Gauge):
    """Each singular pair gets the sign that makes its product with the reference's positive."""

    def fix(self, factor: Factor, reference: Factor) -> Factor:
        """Flip the pairs that point away from the reference's pair of the same number."""
        towards_a = (factor.A * reference.A).sum(-1)
        towards_b = (factor.B * reference.B).sum(-2)
        signs = torch.where(towards_a + towards_b < 0, -1.0, 1.0).to(factor.A.dtype)
        return Factor(factor.A * signs[..., :, None], factor.B * signs[..., None, :])


@GAUGES.register("procrustes")
class ProcrustesGauge(Gauge):
    """The orthogonal R that brings [Aᵀ; B]·R nearest to the reference (Schönemann 1966).

    Unlike signs it is continuous where singular values cross, and equals the sign gauge at rank 1.
    """

    def fix(self, factor: Factor, reference: Factor) -> Factor:
        """Rotate each module's factors onto the reference's."""
        overlap = factor.A @ reference.A.mT + factor.B.mT @ reference.B
        u, _, vh = torch.linalg.svd(overlap)
        rotation = u @ vh
        return Factor(rotation.mT @ factor.A, factor.B @ rotation)


@GAUGES.register("shared")
class SharedGauge(Gauge):
    """A is the reference's A, so B = ΔW·A⁺ and the vector is linear in ΔW.

    For adapters that were trained with one shared frozen A: their updates have the rows of that A
    as input space, so nothing is lost.
    """

    balanced = False

    #: Largest part of ΔW, relative to its norm, that may lie outside the reference's row space.
    tolerance: ClassVar[float] = 1e-3

    def fix(self, factor: Factor, reference: Factor) -> Factor:
        """Write each module's update in the reference's A.

        Raises:
            LayoutError: an update does not lie in the row space of the reference's A.
        """
        inverse = torch.linalg.pinv(reference.A)
        change = factor.A @ inverse
        lost = _norm(factor.A - change @ reference.A)
        if (lost > self.tolerance * _norm(factor.A)).any():
            raise LayoutError(
                "the gauge 'shared' needs adapters trained with the reference's own A, but "
                "another A was found: use 'sign' or 'procrustes'"
            )
        return Factor(reference.A.expand_as(factor.A), factor.B @ change)


def _norm(matrices: Float[Tensor, "*n r in"]) -> Float[Tensor, "*n"]:
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    return norms
