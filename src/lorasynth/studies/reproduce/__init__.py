"""The paper's claims, one by one, and goals beyond it, on the avatar domain (`reproduce`)."""

from lorasynth.studies.reproduce import (
    beyond,
    cost,
    edits,
    families,
    how_to_predict,
    norms,
    spectrum,
    vae_grid,
    what_suits,
)
from lorasynth.studies.reproduce.finding import CLAIMS, Finding, look_into
from lorasynth.studies.reproduce.report import write_report
from lorasynth.studies.reproduce.study import ReproduceConfig, Study, smoke

#: The order of the report.
_ORDER = (
    "norms",
    "beta",
    "spectrum",
    "edits",
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


def in_order() -> list[str]:
    """The names of all claims: those that come with this package first, installed ones after."""
    return [*_ORDER, *(name for name in CLAIMS.names() if name not in _ORDER)]


__all__ = [
    "CLAIMS",
    "Finding",
    "ReproduceConfig",
    "Study",
    "beyond",
    "cost",
    "edits",
    "families",
    "how_to_predict",
    "in_order",
    "look_into",
    "norms",
    "smoke",
    "spectrum",
    "vae_grid",
    "what_suits",
    "write_report",
]
