"""Predicts adapters without training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorasynth.adapter import Factor, Factors
from lorasynth.base import BaseModel
from lorasynth.engine import Recipe
from lorasynth.engine.fleet import start_factors
from lorasynth.images import Subject


@dataclass(frozen=True)
class MeanPredictor:
    """Predicts adapters whose B is a tenth of the mean of the subject's images."""

    base: BaseModel
    recipe: Recipe
    fingerprint: str = "mean"
    encoder: None = None

    def predict(self, subjects: Sequence[Subject]) -> Factors:
        means = torch.stack([one.images.double().mean() / 1275 for one in subjects])
        start = start_factors(self.base.target_linears(self.recipe.targets), self.recipe)
        return {
            name: Factor(f.A.expand(len(means), -1, -1), f.B + means[:, None, None])
            for name, f in start.items()
        }
