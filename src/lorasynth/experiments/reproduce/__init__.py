"""The paper's claims, one by one, on the avatar domain (`lorasynth reproduce`)."""

from lorasynth.experiments.reproduce import (
    cost,
    families,
    how_to_predict,
    norms,
    spectrum,
    vae_grid,
    what_suits,
)
from lorasynth.experiments.reproduce.finding import CLAIMS, Finding
from lorasynth.experiments.reproduce.report import write_report
from lorasynth.experiments.reproduce.study import ReproduceConfig, Study, smoke

#: In the order of the report; each has looked into one claim or more.
ORDER = (
    "norms",
    "beta",
    "spectrum",
    "linearity",
    "vae or pca",
    "spaces",
    "gradient flow",
    "v-prediction",
    "adalora",
    "cost",
    "adapter methods",
)

__all__ = [
    "CLAIMS",
    "ORDER",
    "Finding",
    "ReproduceConfig",
    "Study",
    "cost",
    "families",
    "how_to_predict",
    "norms",
    "smoke",
    "spectrum",
    "vae_grid",
    "what_suits",
    "write_report",
]
