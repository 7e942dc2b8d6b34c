"""What a benchmark says: a table with intervals, differences, calibration, curves of strength."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from lorasynth.adapter import Factors, cosines
from lorasynth.core.atomic import write_json
from lorasynth.core.cache import plain
from lorasynth.core.figures import Line, curves, save_figure
from lorasynth.core.randomness import torch_stream
from lorasynth.evaluation.baselines import Ridge
from lorasynth.evaluation.benchmark import Benchmark, Contender, Measured
from lorasynth.evaluation.bootstrap import bootstrap_ratio
from lorasynth.evaluation.calibration import calibration
from lorasynth.evaluation.contenders import (
    ASKED,
    OURS,
    Parts,
    best_strength,
    conditions_of,
    require_described,
    sampled,
)
from lorasynth.evaluation.metrics import mean_pairwise_distance

#: Strengths that are tried on validation subjects.
STRENGTHS = (0.85, 1.0, 1.05, 1.1, 1.15, 1.3, 1.5)
#: Figures that say how like their subjects adapters are.
COMPARED = ("identity_similarity", "identity_similarity_second", "attribute_accuracy")


def evaluate(
    benchmark: Benchmark,
    contenders: Sequence[Contender],
    parts: Parts | None = None,
    *,
    resamples: int = 16,
) -> dict[str, Any]:
    """Measure contenders on unseen subjects; JSON values.

    Args:
        benchmark: the subjects, and what is measured.
        contenders: the first is what the others are compared with, beside ours.
        parts: what contenders were made from; with a library and trained contenders, adapters are
            compared as well as images.
        resamples: adapters synthesised from one condition to measure how they differ.
    """
    contenders = require_described(contenders, benchmark.cases)
    measured = {one.name: benchmark.measure(one) for one in contenders}
    strengths = {one.name: one.strength for one in contenders if one.adapters is not None}
    measured["real"] = benchmark.real()
    beside = [name for name in (*OURS, contenders[0].name) if name in measured]
    report = {
        "config": plain(benchmark.config),
        "base": benchmark.base.name,
        "base_fingerprint": benchmark.base.fingerprint,
        "subjects": list(benchmark.subjects.ids),
        "rows": [
            {"method": name, "strength": strengths.get(name), "n": len(benchmark.cases)}
            | values.intervals()
            for name, values in measured.items()
        ],
        "paired": [row for name in dict.fromkeys(beside) for row in _paired(name, measured)],
    }
    if "trained" not in measured or parts is None:
        return report
    ours = [name for name in OURS if name in measured]
    report["share_of_trained"] = [
        _share(name, measured[name], measured["trained"]) for name in ours
    ]
    return report | (_adapters(benchmark, contenders, parts, resamples) if parts.library else {})


def _paired(ours: str, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """How much one method has more than each other method, subject by subject."""
    return [
        {"method": f"{ours} - {name}", **measured[ours].less(other).intervals()}
        for name, other in measured.items()
        if name not in (ours, "real")
    ]


def _share(name: str, measured: Measured, ceiling: Measured) -> dict[str, Any]:
    """What a method has, as a share of what trained adapters have; None where they have nothing."""
    shares: dict[str, Any] = {"method": name}
    for figure in COMPARED:
        if figure in measured.figures:
            ours, whole = measured[figure], ceiling[figure]
            shares[figure] = asdict(bootstrap_ratio(ours, whole)) if whole.mean() > 0 else None
    return shares


def _adapters(
    benchmark: Benchmark, contenders: Sequence[Contender], parts: Parts, count: int
) -> dict[str, Any]:
    """How adapters of one condition differ, whether by as much as they err, and from the library.

    Diffusion samples at temperature 1, whatever suits similarity: a forecast says what there may
    be.  Ridge regression with its error on left-out subjects as Gaussian noise is the simplest
    calibrated one.
    """
    library, synthesizer, cases = parts.library, parts.whole, benchmark.cases
    assert library is not None, "the caller has seen to it"
    made: dict[str, Factors] = {one.name: one.adapters(cases) for one in contenders if one.adapters}
    samplers = [sampled(synthesizer, seed, 1.0) for seed in range(count)]
    drawn = torch.stack([parts.encode(sampler(cases)) for sampler in samplers])
    latents = {name: parts.encode(factors) for name, factors in made.items() if name not in ASKED}
    truth = latents.pop("trained")
    forecasts = {name: values[None] for name, values in latents.items()}
    ridge = Ridge(library)
    noise = torch.randn(drawn.shape, generator=torch_stream(parts.seed, "ridge noise"))
    conditions = conditions_of(synthesizer, cases)
    forecasts["ridge with noise"] = ridge(conditions) + ridge.spread * noise
    forecasts["synthesised"] = drawn
    centred = drawn.transpose(0, 1) - library.latents.mean(dim=0)
    known = synthesizer.decode(library.latents)
    return {
        "library": len(library.ids),
        "memorisation": {
            name: cosines(made[name], known).amax(dim=1).mean().item()
            for name in (*OURS, "trained")
            if name in made
        },
        "calibration": [
            {"method": name, "samples": len(samples), **asdict(calibration(samples, truth))}
            for name, samples in forecasts.items()
        ],
        "adapter_diversity": mean_pairwise_distance(centred).mean().item(),
    }


def tuned(
    practice: Benchmark, contenders: Sequence[Contender], strengths: Sequence[float] = STRENGTHS
) -> dict[str, float]:
    """The strength of each contender with adapters that suits validation subjects best."""
    alone = practice.measure(Contender(name="base")).figures
    found = {}
    for one in contenders:
        if one.adapters is not None:
            tried = {s: _at(one, s) for s in strengths}
            measured = {s: practice.measure(at).figures for s, at in tried.items()}
            found[one.name] = best_strength(measured, alone)
    return found


def at_strengths(contenders: Sequence[Contender], strengths: Sequence[float]) -> list[Contender]:
    """Each contender with adapters at each strength; the others as they are."""
    return [
        one if strength is None else _at(one, strength)
        for one in contenders
        for strength in ((None,) if one.adapters is None or not strengths else strengths)
    ]


def _at(contender: Contender, strength: float) -> Contender:
    return replace(contender, name=f"{contender.name} at {strength:g}", strength=strength)


def save_report(report: Mapping[str, Any], path: Path) -> None:
    """Write the report, and beside it curves as a PNG where there are several strengths."""
    write_json(path, dict(report))
    if any(" at " in row["method"] for row in report["rows"]):
        save_figure(draw_strengths(report), path.with_suffix(".png"))


def draw_strengths(report: Mapping[str, Any]) -> Figure:
    """Figures against strength, a line for each contender."""
    rows = [row for row in report["rows"] if row["strength"] is not None]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row["method"].rpartition(" at ")[0], []).append(row)
    wanted = ("identity_similarity", "prompt_score", "prompt_following", "diversity")
    panels = {
        name.replace("_", " "): [
            Line(title, [row["strength"] for row in mine], [row[name] for row in mine])
            for title, mine in lines.items()
        ]
        for name in wanted
        if name in rows[0]
    }
    return curves(panels, "strength")
