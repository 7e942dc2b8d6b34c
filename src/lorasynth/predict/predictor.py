"""A network from conditions to adapters, as one module while it is trained.

An adapter is a mean and a few directions, mixed by what a regression reads in the condition.  A is
frozen and shared, as in the default recipe, so only B is predicted, and ΔW is linear in it.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.adapter import Factor, Factors, Layout
from lorasynth.codec import PCA, PCAConfig, Scaled, ScaledConfig
from lorasynth.hypernet import LatentRegression, LatentRegressionConfig

#: Directions that are smaller than the largest by this factor, squared, are rounding errors.
_SMALLEST = 1e-14


class Predictor(nn.Module):
    """Conditions in, stacked adapters out.

    Args:
        config: of the regression.
        latents: k, the number of directions that adapters are mixed of.
        condition_width: m, the width of a condition.
        start: the frozen A of every module, with an axis n of 1; its B gives the widths alone.

    Attributes:
        layout: of the adapters.
        shared: the frozen A of all modules, one after another.
    """

    shared: Tensor

    def __init__(
        self, config: LatentRegressionConfig, latents: int, condition_width: int, start: Factors
    ) -> None:
        super().__init__()
        self.layout = Layout.from_factors(start)
        self.regression = LatentRegression(config, latents, condition_width)
        shared = torch.cat([start[module].A[0].flatten() for module in self.layout.modules])
        self.register_buffer("shared", shared.float())
        self.directions = nn.Linear(latents, self.layout.size - len(shared))
        nn.init.zeros_(self.directions.weight)
        nn.init.zeros_(self.directions.bias)

    @property
    def _written(self) -> list[int]:
        """Numbers of each module's B."""
        return [slot.rank * slot.out_features for slot in self.layout.slots]

    def forward(self, conditions: Float[Tensor, "n m"]) -> Factors:
        """Predict n stacked adapters; A is one expanded tensor."""
        return self._factors(self.directions(self.regression(conditions)))

    def _factors(self, written: Float[Tensor, "n b"]) -> Factors:
        """Stacked adapters whose B are the rows of `written`, module after module."""
        slots = self.layout.slots
        read = self.shared.split([slot.rank * slot.in_features for slot in slots])
        parts = written.split(self._written, dim=1)
        factors = {}
        for slot, a, b in zip(slots, read, parts, strict=True):
            A = a.view(1, slot.rank, slot.in_features).expand(len(written), -1, -1)
            factors[slot.module] = Factor(A, b.view(-1, slot.out_features, slot.rank))
        return factors

    @torch.no_grad()
    def split(self, conditions: Float[Tensor, "n m"]) -> tuple[LatentRegression, PCA]:
        """The same map as a hypernetwork and a codec.

        Args:
            conditions: over which the codec's latents are uncorrelated and of unit size.

        Returns:
            A regression onto the principal components of the predicted adapters, and these.
        """
        latents = self.regression(conditions).double()
        mean = latents.mean(dim=0)
        parts = self.directions.weight.split(self._written)  # never all rows in float64
        gram = torch.stack([part.double().T @ part.double() for part in parts]).sum(dim=0)
        squares, axes = torch.linalg.eigh(gram)
        sizes = squares.clamp(min=_SMALLEST * squares.max()).sqrt()
        mixing = sizes[:, None] * axes.T
        mixed = (latents - mean) @ mixing.T
        variances, turn = torch.linalg.eigh(mixed.T @ mixed / len(mixed))
        variances, turn = variances.flip(0).clamp(min=0), turn.flip(1)
        codec = self._codec(mean, axes / sizes @ turn, variances)
        to_codec = turn.T @ mixing / (codec.unit * codec.scaled.unit[0]).double()[:, None]
        regression = copy.deepcopy(self.regression)
        regression.leave.weight.copy_(to_codec @ regression.leave.weight.double())
        regression.leave.bias.copy_(to_codec @ (regression.leave.bias.double() - mean))
        regression.mean.zero_()
        return regression, codec

    def _codec(
        self,
        mean: Float[Tensor, " k"],
        turn: Float[Tensor, "k k"],
        variances: Float[Tensor, " k"],
    ) -> PCA:
        """A codec of flat vectors, whose components are `turn` of the directions."""
        size, layout = self.layout.size, self.layout
        scaled = Scaled(ScaledConfig(scale="global"), size, size).to(self.shared.device)
        scaled.mean = layout.flatten(self._factors(self.directions(mean[None].float())))[0]
        overall = (variances.sum() / size).sqrt()
        scaled.unit.fill_(torch.where(overall > 0, overall, 1.0))
        flat = scaled.mean.new_zeros(len(turn), size)
        for slot, part in zip(
            layout.slots, self.directions.weight.split(self._written), strict=True
        ):
            _, start = layout.offsets[slot.module]
            flat[:, start : start + len(part)] = (part.double() @ turn).T
        return PCA.of(PCAConfig(), scaled, flat, variances / overall.square())
