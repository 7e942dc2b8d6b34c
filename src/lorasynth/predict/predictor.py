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

    def forward(self, conditions: Float[Tensor, "n m"]) -> Factors:
        """Predict n stacked adapters; A is one expanded tensor."""
        return self._factors(self.directions(self.regression(conditions)))

    def _factors(self, written: Float[Tensor, "n b"]) -> Factors:
        """Stacked adapters whose B are the rows of `written`, module after module."""
        slots = self.layout.slots
        read = self.shared.split([slot.rank * slot.in_features for slot in slots])
        parts = written.split([slot.rank * slot.out_features for slot in slots], dim=1)
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
        basis, mixing = torch.linalg.qr(self.directions.weight.double())
        mixed = (latents - mean) @ mixing.T
        variances, turn = torch.linalg.eigh(mixed.T @ mixed / len(mixed))
        variances, turn = variances.flip(0).clamp(min=0), turn.flip(1)
        codec = self._codec(mean, basis @ turn, variances)
        to_codec = turn.T @ mixing / (codec.unit * codec.scaled.unit[0]).double()[:, None]
        regression = copy.deepcopy(self.regression)
        regression.leave.weight.copy_(to_codec @ regression.leave.weight.double())
        regression.leave.bias.copy_(to_codec @ (regression.leave.bias.double() - mean))
        regression.mean.zero_()
        return regression, codec

    def _codec(
        self,
        mean: Float[Tensor, " k"],
        components: Float[Tensor, "b k"],
        variances: Float[Tensor, " k"],
    ) -> PCA:
        """A codec of flat vectors, from the components of what is predicted."""
        size, device = self.layout.size, self.shared.device
        centre = self.directions.bias.double() + self.directions.weight.double() @ mean
        scaled = Scaled(ScaledConfig(scale="global"), size, size).to(device)
        scaled.mean = self.layout.flatten(self._factors(centre[None].float()))[0]
        overall = (variances.sum() / size).sqrt()
        scaled.unit.fill_(torch.where(overall > 0, overall, 1.0))
        flat = self.layout.flatten(self._factors(components.T.float()))
        flat = flat - self.layout.flatten(self._factors(torch.zeros_like(centre[None]).float()))
        return PCA.of(PCAConfig(), scaled, flat, variances / overall.square())
