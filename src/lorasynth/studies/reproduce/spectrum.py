"""Figure 3 and 4.1: few components hold the variance, and they stand for single attributes."""

from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.adapter import Layout
from lorasynth.edit import LatentLibrary, labels_of
from lorasynth.studies.reproduce.errors import roots
from lorasynth.studies.reproduce.finding import CLAIMS, Finding, judged
from lorasynth.studies.reproduce.study import KINDS, Study

SHARES = (0.5, 0.8, 0.9, 0.95)
#: R² above which all components together tell an attribute.
TOLD = 0.1
#: Gauges whose spectra are compared; "raw" is none at all.
GAUGES = ("raw", "random_sign", "sign", "procrustes")


@CLAIMS.register("spectrum")
def spectrum(study: Study) -> Finding:
    """Holds: 95 % of the variance in a fifth of the components, and attributes in single ones.

    Attributes count that all components together say something of (R² above 0.1).
    """
    curves = {f"{kind}, {gauge}": _curve(study, kind, gauge) for kind in KINDS for gauge in GAUGES}
    curves["ours, shared"] = _curve(study, "ours", None)
    rows: list[dict[str, Any]] = [
        {"vectors": name, **_components(curve)} for name, curve in curves.items()
    ]
    probes = _probes(study)
    count = study.config.library
    few = rows[-1]["95 %"] <= count / 5
    told = [row for row in probes if row["all_components"] > TOLD]
    single = sum(row["best_component"] > 0.5 * row["all_components"] for row in told)
    return Finding(
        claim="Few components hold 95 % of the variance; PCA disentangles attributes",
        section="4.1, Figure 3",
        verdict=judged(holds=few and single > len(told) / 2, partly=few or single > len(told) / 2),
        why=(
            f"{rows[-1]['95 %']} of {count} components hold 95 % on our library in its own gauge. "
            f"Of {study.config.compared} adapters of the paper's kind {_of(rows, 'usual, raw')} "
            f"components do as trained and {_of(rows, 'usual, procrustes')} with the best gauge; "
            f"of as many of ours {_of(rows, 'ours, procrustes')}. Of {len(probes)} attributes "
            f"{len(told)} can be read from all components together (R² above {TOLD}), and {single} "
            "of these for more than half from one component alone."
        ),
        values={"components": rows, "probes": probes},
        tables={"Components that hold a share of the variance": rows, "Linear probes (R²)": probes},
        figures={"spectrum": _draw(curves)},
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
    curve: list[float] = study.cell("spectrum", facts, measure)
    return curve


def _components(curve: list[float]) -> dict[str, int]:
    held = torch.tensor(curve)
    return {f"{share:.0%}".replace("%", " %"): int((held < share).sum()) + 1 for share in SHARES}


def _of(rows: list[dict[str, Any]], name: str) -> int:
    return int(next(row["95 %"] for row in rows if row["vectors"] == name))


def _probes(study: Study) -> list[dict[str, Any]]:
    """How well each attribute is read linearly from all components, and from the best one."""

    def measure() -> list[dict[str, Any]]:
        library, seed = study.library, study.config.seeds[0]
        codec, count = study.standard_codec("pca", seed), study.config.library
        latents = LatentLibrary.encode(library, codec, None)
        rows = []
        for column in labels_of(latents.columns).values():
            for name, label in column.items():
                rows.append({"attribute": name, **_probe(latents.latents, label, count)})
        return rows

    facts = study.codec_options("pca", study.config.seeds[0])
    rows: list[dict[str, Any]] = study.cell("attribute probes", facts, measure)
    return rows


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


def _draw(curves: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(6.4, 4), dpi=130)
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, label=name, linewidth=1)
    axes.axhline(0.95, color="grey", linewidth=0.6, linestyle=":")
    axes.set(xlabel="components", ylabel="cumulative share of variance", ylim=(0, 1))
    axes.legend(fontsize=6)
    figure.tight_layout()
    return figure
