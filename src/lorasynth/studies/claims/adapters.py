"""3.2, 4.1 and Figure 3: norms of A and B before and after the SVD; the spectrum of a library."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors, Layout
from lorasynth.codec import PCA, PCAConfig
from lorasynth.core.figures import Line, curves
from lorasynth.edit import labels_of
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.studies.errors import fvu, ridge_fvu, roots
from lorasynth.studies.finding import (
    Finding,
    claim,
    difference,
    interval,
    judged,
    listed,
    materially,
)
from lorasynth.studies.study import KINDS, Study

#: Vectors that are compared: as trained, and in canonical form under each gauge.
FORMS = ("raw", "none", "sign", "procrustes")
#: Gauges whose spectra are compared; "raw" is none at all.
GAUGES = ("raw", "random_sign", "sign", "procrustes")
SHARES = (0.5, 0.8, 0.9, 0.95)
#: R² above which all components together tell an attribute.
TOLD = 0.1


@claim(
    "norms",
    says="Norms of A and B vary between adapters; the SVD makes their statistics uniform",
    section="3.2",
    rule="Holds: after the SVD the logarithms of norms have a standard deviation a tenth smaller, "
    "and ridge regression an FVU a tenth smaller; partly: one of them. The paper's kind of library "
    "decides, and its own form: the SVD without a gauge. (That the norms of A and B are equal "
    "after it is its definition, and decides nothing.)",
    seeded=False,
)
def norms(study: Study) -> Finding:
    """Compare norms and ridge regression's errors in each form of both kinds of libraries."""
    cells = {kind: {form: _norms(study, kind, form) for form in FORMS} for kind in KINDS}
    raw, svd = cells["usual"]["raw"], cells["usual"]["none"]
    less = {name: difference([raw[name]], [svd[name]]) for name in ("log_norm_std", "ridge_fvu")}
    before = {name: interval([raw[name]]) for name in less}
    calm, clear = (materially(less[name], before[name]) for name in less)
    rows: list[dict[str, Any]] = [
        {"kind": kind, "form": form, **{name: interval([v]) for name, v in cell.items()}}
        for kind in KINDS
        for form, cell in cells[kind].items()
    ]
    panels = {
        part: [
            Line(form, range(len(cell[part])), cell[part], ".-")
            for form, cell in (("as trained", raw), ("after the SVD", svd))
            if part in cell
        ]
        for part in ("std_of_log_A", "std_of_log_B")
    }
    return Finding(
        verdict=judged(holds=calm and clear, partly=calm or clear),
        why={
            "standard deviation of log norms as trained": before["log_norm_std"],
            "less after the SVD": less["log_norm_std"],
            "FVU of ridge regression as trained": before["ridge_fvu"],
            "less of it after the SVD": less["ridge_fvu"],
        },
        tables={"Norms, and FVU on held-out adapters": rows},
        figures={"norms": curves(panels, "module", "over adapters")},
    )


def _norms(study: Study, kind: str, form: str) -> dict[str, Any]:
    """How norms vary, by module; and FVU, by held-out adapter."""
    count = study.config.compared
    latents = min(study.latents, count - 1)

    def measure() -> dict[str, Any]:
        factors = study.in_gauge(kind, form)
        vectors = Layout.from_factors(factors).flatten(factors)
        known, held = vectors[:count], vectors[count:]
        codec = PCA.fit(known, PCAConfig(latents=latents))
        a, b = _log_norms(factors)
        conditions = study.embeddings(study.compared(kind))
        return {
            "std_of_log_A": listed(a.std(dim=0)),
            "std_of_log_B": listed(b.std(dim=0)),
            "log_norm_std": listed((a.std(dim=0) + b.std(dim=0)) / 2),
            "std_of_log_ratio": listed((a - b).std(dim=0)),
            "pca_fvu": listed(fvu(codec.decode(codec.encode(held)), held, known)),
            "ridge_fvu": listed(ridge_fvu(vectors, conditions, count)),
        }

    facts = {"kind": kind, "form": form, "latents": latents}
    facts |= {"trained": study.recipe(kind).fingerprint}
    return study.cell("norms", facts, measure)


def _log_norms(factors: Factors) -> Float[Tensor, "2 n modules"]:
    """Log |A| and log |B| of each adapter and module."""

    def log_norm(part: Tensor) -> Tensor:
        return torch.log(part.flatten(1).norm(dim=1).clamp(min=1e-12))

    pairs = [torch.stack([log_norm(f.A), log_norm(f.B)]) for f in factors.values()]
    return torch.stack(pairs, dim=2)


@claim(
    "spectrum",
    says="Few components hold 95 % of the variance; PCA disentangles attributes",
    section="4.1, Figure 3",
    rule="Holds: 95 % of the variance is in a fifth of the components, and most attributes in "
    "single ones, which tell more than half of what all do; partly: one of them. Attributes count "
    "that all components together say something of (R² above 0.1).",
    seeded=False,
)
def spectrum(study: Study) -> Finding:
    """Compare spectra under each gauge, and probe the components for attributes."""
    spectra = {f"{kind}, {gauge}": _curve(study, kind, gauge) for kind in KINDS for gauge in GAUGES}
    spectra["ours, shared"] = _curve(study, "ours", None)
    needed = {name: _components(curve) for name, curve in spectra.items()}
    probes, count = _probes(study), study.config.known
    few = needed["ours, shared"]["95 %"] <= count / 5
    told = [row for row in probes if row["all_components"] > TOLD]
    single = sum(row["best_component"] > 0.5 * row["all_components"] for row in told)
    rows = [{"vectors": name, **shares} for name, shares in needed.items()]
    lines = [Line(n, range(1, len(curve) + 1), curve, "-") for n, curve in spectra.items()]
    most = single > len(told) / 2
    return Finding(
        verdict=judged(holds=few and most, partly=few or most),
        why={
            f"components of {count} that hold 95 %": needed["ours, shared"]["95 %"],
            f"of {study.config.compared}": {
                name: needed[name]["95 %"]
                for name in ("usual, raw", "usual, procrustes", "ours, procrustes")
            },
            f"attributes of {len(probes)} that all components tell": len(told),
            "that one component alone tells half as well": single,
        },
        tables={"Components that hold a share of the variance": rows, "Linear probes (R²)": probes},
        figures={"spectrum": curves({"cumulative share of variance": lines}, "components")},
    )


def _curve(study: Study, kind: str, gauge: str | None) -> list[float]:
    """Cumulative share of variance by components; None for the library's own gauge."""

    def measure() -> list[float]:
        if gauge is None:
            vectors, _ = study.vectors
        else:
            factors = study.in_gauge(kind, gauge)
            vectors = Layout.from_factors(factors).flatten(factors)[: study.config.compared]
        energy = roots(vectors).square()
        return [round(share, 6) for share in (energy.cumsum(0) / energy.sum()).tolist()]

    facts = {"kind": kind, "gauge": gauge, "trained": study.recipe(kind).fingerprint}
    return study.cell("spectrum", facts, measure)


def _components(curve: list[float]) -> dict[str, int]:
    held = torch.tensor(curve)
    return {f"{100 * share:.0f} %": int((held < share).sum()) + 1 for share in SHARES}


def _probes(study: Study) -> list[dict[str, Any]]:
    """How well each attribute is read linearly from all components, and from the best one."""
    seed, count = study.config.seeds[0], study.config.known

    def measure() -> list[dict[str, Any]]:
        known = LatentLibrary.encode(study.library, study.standard_codec("pca", seed), None)
        return [
            {"attribute": name, **_probe(known.latents, label, count)}
            for column in labels_of(known.columns).values()
            for name, label in column.items()
        ]

    return study.cell("attribute probes", study.codec_options("pca", seed), measure)


def _probe(
    latents: Float[Tensor, "n k"], label: Float[Tensor, " n"], count: int
) -> dict[str, float]:
    """R² on held-out adapters, by ridge regression on standardised latents."""
    z = (latents - latents[:count].mean(dim=0)) / latents[:count].std(dim=0).clamp(min=1e-6)
    y = label - label[:count].mean()
    total = y[count:].square().sum().clamp(min=1e-9)
    x, held = z[:count].double(), z[count:].double()
    gram = x.T @ x + 0.1 * count * torch.eye(x.shape[1], dtype=x.dtype)
    whole = held @ torch.linalg.solve(gram, x.T @ y[:count].double())
    slopes = (x * y[:count, None]).mean(dim=0)
    best = int(slopes.abs().argmax())
    alone = slopes[best] * held[:, best]
    return {
        "all_components": 1 - float((whole - y[count:]).square().sum() / total),
        "best_component": 1 - float((alone - y[count:]).square().sum() / total),
        "which": best,
    }
