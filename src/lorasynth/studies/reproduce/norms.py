"""3.2: the norms of A and B vary between adapters, and the SVD makes their statistics uniform."""

from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.adapter import Factors, Layout
from lorasynth.codec import PCA, PCAConfig
from lorasynth.studies.reproduce.errors import missed, ridge_missed
from lorasynth.studies.reproduce.finding import (
    CLAIMS,
    Finding,
    difference,
    flat,
    interval,
    judged,
    listed,
    materially,
    text,
)
from lorasynth.studies.reproduce.study import KINDS, Study

#: Vectors that are compared: as trained, and in canonical form under each gauge.
FORMS = ("raw", "none", "sign", "procrustes")


@CLAIMS.register("norms")
def norms(study: Study) -> Finding:
    """Holds: after the SVD norms scatter a tenth less between adapters; ridge misses a tenth less.

    The paper's kind of library decides, and its own form: the SVD without a gauge.  (That the norms
    of A and B are equal after it is its definition, and decides nothing.)
    """
    cells = {kind: {form: _cell(study, kind, form) for form in FORMS} for kind in KINDS}
    usual = cells["usual"]
    calmer = difference([usual["raw"]["scatter"]], [usual["none"]["scatter"]])
    clearer = difference([usual["raw"]["ridge_missed"]], [usual["none"]["ridge_missed"]])
    scatter, ridge = (interval([usual["raw"][name]]) for name in ("scatter", "ridge_missed"))
    calm, clear = materially(calmer, scatter), materially(clearer, ridge)
    rows = [_row(kind, form, cell) for kind in KINDS for form, cell in cells[kind].items()]
    least = {kind: min((r for r in rows if r["kind"] == kind), key=_ridge_mean) for kind in KINDS}
    return Finding(
        claim="Norms of A and B vary between adapters; the SVD makes their statistics uniform",
        section="3.2",
        verdict=judged(holds=calm and clear, partly=calm or clear),
        why=(
            "Among adapters whose A and B were trained by Adam, the logarithm of a factor's norm "
            f"scatters by {text(scatter)} (mean over modules and both "
            f"factors), after the SVD by {text(interval([usual['none']['scatter']]))}. Ridge "
            f"regression from the images' embeddings misses {text(ridge)} of the variance of "
            f"held-out adapters before it, and {text(clearer)} less after it. With the best form "
            f"it misses {text(least['usual']['ridge_missed'])} of that library and "
            f"{text(least['ours']['ridge_missed'])} of one of our recipe."
        ),
        values={"rows": rows, "scatter_less": calmer, "ridge_missed_less": clearer},
        tables={"Norms, and what is missed of held-out adapters": [flat(row) for row in rows]},
        figures={"norms": _draw(study)},
    )


def _cell(study: Study, kind: str, form: str) -> dict[str, Any]:
    """How norms scatter, by module; and what is missed, by held-out adapter."""
    count = study.config.compared
    latents = min(study.latents, count - 1)

    def measure() -> dict[str, Any]:
        factors = study.in_gauge(kind, form)
        vectors = Layout.from_factors(factors).flatten(factors)
        known, held = vectors[:count], vectors[count:]
        codec = PCA.fit(known, PCAConfig(latents=latents))
        a, b = _log_norms(factors)
        return {
            "scatter_of_a": listed(a.std(dim=0)),
            "scatter_of_b": listed(b.std(dim=0)),
            "scatter": listed((a.std(dim=0) + b.std(dim=0)) / 2),
            "scatter_of_ratio": listed((a - b).std(dim=0)),
            "pca_missed": listed(missed(codec.decode(codec.encode(held)), held, known)),
            "ridge_missed": listed(
                ridge_missed(vectors, study.conditions(study.compared(kind)), count)
            ),
        }

    facts = {"kind": kind, "form": form, "latents": latents}
    facts |= {"trained": study.recipe(kind).fingerprint}
    cell: dict[str, Any] = study.cell("norms", facts, measure)
    return cell


def _row(kind: str, form: str, cell: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "form": form, **{name: interval([v]) for name, v in cell.items()}}


def _ridge_mean(row: dict[str, Any]) -> float:
    return float(row["ridge_missed"]["mean"])


def _log_norms(factors: Factors) -> Float[Tensor, "2 n modules"]:
    """Log |A| and log |B| of each adapter and module."""

    def log_norm(part: Tensor) -> Tensor:
        return torch.log(part.flatten(1).norm(dim=1).clamp(min=1e-12))

    pairs = [torch.stack([log_norm(f.A), log_norm(f.B)]) for f in factors.values()]
    return torch.stack(pairs, dim=2)


def _draw(study: Study) -> Figure:
    figure = Figure(figsize=(9, 6), dpi=130)
    panels = figure.subplots(2, 2, sharey="row")
    for column, (form, title) in enumerate((("raw", "as trained"), ("none", "after the SVD"))):
        for row, (name, values) in enumerate(
            zip("AB", _log_norms(study.in_gauge("usual", form)), strict=True)
        ):
            axes = panels[row, column]
            centred = values - values.mean(dim=0)
            axes.boxplot([module.tolist() for module in centred.T[:24]], showfliers=False)
            axes.set(title=f"|{name}| {title}", xticks=[], xlabel="modules")
            axes.set_ylabel("log of the norm, less its mean")
    figure.tight_layout()
    return figure
