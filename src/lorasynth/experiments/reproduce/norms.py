"""3.2: the norms of A and B vary between adapters, and the SVD makes their statistics uniform."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.adapter import Factors, Layout, canonicalise, choose_reference
from lorasynth.codec import PCA, PCAConfig
from lorasynth.experiments.reproduce.errors import missed, ridge_missed
from lorasynth.experiments.reproduce.finding import CLAIMS, Finding, judged
from lorasynth.experiments.reproduce.study import KINDS, Study

#: Vectors that are compared: as trained, and in canonical form under each gauge.
FORMS = ("raw", "none", "sign", "procrustes")


@CLAIMS.register("norms")
def norms(study: Study) -> Finding:
    """Holds: norms of A and B agree better after the SVD, and vectors are learned better too."""
    rows = [_row(study, kind, form) for kind in KINDS for form in FORMS]
    usual = {row["form"]: row for row in rows if row["kind"] == "usual"}
    ours = {row["form"]: row for row in rows if row["kind"] == "ours"}
    uniform = usual["none"]["norm_ratio_spread"] < usual["raw"]["norm_ratio_spread"]
    learned = min(usual[f]["ridge_missed"] for f in FORMS[1:]) < usual["raw"]["ridge_missed"] - 0.02
    best = min(ours[f]["ridge_missed"] for f in FORMS)
    return Finding(
        claim="Norms of A and B vary between adapters; the SVD makes their statistics uniform",
        section="3.2",
        verdict=judged(holds=uniform and learned, partly=uniform),
        why=(
            "Among adapters whose A and B were trained by Adam, the ratio of the two norms of a "
            f"module scatters by {usual['raw']['norm_ratio_spread']:.3f} (standard deviation of "
            f"its logarithm), after the SVD by {usual['none']['norm_ratio_spread']:.1e}. Ridge "
            f"regression misses {usual['raw']['ridge_missed']:.3f} of the variance of held-out "
            f"adapters before it and {min(usual[f]['ridge_missed'] for f in FORMS[1:]):.3f} after "
            f"it; on a library of our recipe it misses {best:.3f}. So the recipe decides whether a "
            "library can be learned."
        ),
        values={"rows": rows},
        tables={"Norms, and what is missed of held-out adapters": rows},
        figures={"norms": _draw(study)},
    )


def _row(study: Study, kind: str, form: str) -> dict[str, Any]:
    count = study.config.library

    def measure() -> dict[str, Any]:
        factors, layout = _in_form(study, kind, form)
        vectors = layout.flatten(factors)
        known, held = vectors[:count], vectors[count:]
        codec = PCA.fit(known, PCAConfig(latents=min(study.config.latents, count - 1)))
        return {
            "kind": kind,
            "form": form,
            "norm_ratio_spread": float(_log_ratios(factors).std(dim=0).mean()),
            "pca_missed": missed(codec.decode(codec.encode(held)), held, known),
            "ridge_missed": ridge_missed(vectors, study.conditions(kind), count),
        }

    facts = {"kind": kind, "form": form, "library": count, "held_out": study.config.held_out}
    row: dict[str, Any] = study.cell("norms", facts, measure)
    return row


def _in_form(study: Study, kind: str, form: str) -> tuple[Factors, Layout]:
    factors = study.raw(kind)
    if form != "raw":
        reference = choose_reference(factors, form) if form != "none" else None
        factors = canonicalise(factors, form, reference)
    return factors, Layout.from_factors(factors)


def _log_ratios(factors: Factors) -> Tensor:
    """log(|A| / |B|) of each adapter and module."""
    return torch.stack(
        [
            (f.A.flatten(1).norm(dim=1) / f.B.flatten(1).norm(dim=1).clamp(min=1e-12)).log()
            for f in factors.values()
        ],
        dim=1,
    )


def _draw(study: Study) -> Figure:
    figure = Figure(figsize=(7, 3), dpi=130)
    for axes, form in zip(figure.subplots(1, 2, sharey=True), ("raw", "none"), strict=True):
        ratios = _log_ratios(_in_form(study, "usual", form)[0])
        axes.boxplot([column.tolist() for column in ratios.T[:24]], showfliers=False)
        axes.set(
            title="as trained" if form == "raw" else "after the SVD", xticks=[], xlabel="modules"
        )
    figure.axes[0].set_ylabel("log of |A| / |B|")
    figure.tight_layout()
    return figure
