"""The paper's claims, one by one, and goals beyond it, on the avatar domain (`reproduce`)."""

from lorasynth.experiments.reproduce import (
    beyond,
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
    "beyond",
    "few steps",
)

__all__ = [
    "CLAIMS",
    "ORDER",
    "Finding",
    "ReproduceConfig",
    "Study",
    "beyond",
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
