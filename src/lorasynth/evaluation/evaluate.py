"""The evaluation: every method on the same unseen subjects, prompts and noise (see `trial`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lorasynth.adapter import Factors, cosines, scaled
from lorasynth.avatars.bundle import Bundle
from lorasynth.core.config import to_dict
from lorasynth.core.learned import require_unseen
from lorasynth.core.randomness import torch_stream
from lorasynth.evaluation.bootstrap import bootstrap_ratio
from lorasynth.evaluation.calibration import calibration
from lorasynth.evaluation.diversity import mean_pairwise_distance
from lorasynth.evaluation.trial import COMPARED, Measured, Trial, TrialConfig
from lorasynth.studies.methods import Method, Ridge, Synthesised, methods

#: Methods of this system, which are compared with all others.
OURS = ("direct", "diffusion")
#: Methods without an adapter.
WITHOUT = ("base", "described")
#: Strengths that are tried on validation subjects.
STRENGTHS = (0.85, 1.0, 1.05, 1.1, 1.15, 1.3, 1.5)
#: How much of prompt following a strength may cost.
_LOST = 0.05


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is evaluated.

    Attributes:
        trial: the subjects, and how images of them are made and judged.
        resamples: adapters synthesised from one condition to measure how they differ.
        tuning: validation subjects on whom the strength of every method is chosen; 0 (default):
            ours as they are shipped, the others as they are trained.
        strengths: that are tried.
    """

    trial: TrialConfig = field(default_factory=TrialConfig)
    resamples: int = 16
    tuning: int = 0
    strengths: tuple[float, ...] = STRENGTHS


def evaluate(bundle: Bundle, config: EvaluationConfig, cache: Path) -> dict[str, Any]:
    """Evaluate every method; returns the JSON object that `lorasynth evaluate` writes.

    Args:
        bundle: the loaded parts.
        config: subjects, seed and sampling.
        cache: folder for trained adapters and for what was measured.
    """
    table = methods(bundle.synthesizer, bundle.pretrained, bundle.library, config.trial.seed)
    run = Trial(bundle.instruments, config.trial, cache / "measured")
    require_unseen(bundle.synthesizer.learned, run.subjects.ids, "the synthesizer")
    adapters = _adapters(bundle, table, run, cache)
    strengths = _strengths(bundle, table, config, cache)
    measured = {name: run.tried(name, None, described=name == "described") for name in WITHOUT}
    for name, factors in adapters.items():
        measured[name] = run.tried(name, scaled(factors, strengths[name]))
    measured["real"] = run.real()
    ours = [name for name in OURS if name in measured]
    return {
        "config": to_dict(config),
        "base_fingerprint": bundle.base.fingerprint,
        "library": len(bundle.library.ids),
        "rows": [_row(name, values, strengths.get(name)) for name, values in measured.items()],
        "paired": [row for name in ours for row in _paired(name, measured)],
        "share_of_trained": [_share(name, measured[name], measured["trained"]) for name in ours],
        "memorisation": _memorisation(bundle, adapters),
        **_forecasts(bundle, run, adapters, config.resamples),
    }


def _adapters(
    bundle: Bundle, table: Mapping[str, Method], run: Trial, cache: Path
) -> dict[str, Factors]:
    """What each method makes for the subjects of a trial."""
    made = {name: method(run.conditions, run.subjects.ids) for name, method in table.items()}
    return made | {"trained": run.trained(bundle.recipe, bundle.pretrained, cache)}


def _strengths(
    bundle: Bundle, table: Mapping[str, Method], config: EvaluationConfig, cache: Path
) -> dict[str, float]:
    """The strength of each method, chosen on validation subjects if there are any."""
    if not config.tuning:
        shipped = {"diffusion": bundle.synthesizer, "direct": bundle.pretrained}
        ours = {name: made.strength for name, made in shipped.items() if made is not None}
        return dict.fromkeys([*table, "trained"], 1.0) | ours
    practice = replace(config.trial, split="validation", subjects=config.tuning)
    run = Trial(bundle.instruments, practice, cache / "measured")
    adapters = _adapters(bundle, table, run, cache)
    return {
        name: best_strength(run, name, factors, config.strengths)
        for name, factors in adapters.items()
    }


def best_strength(run: Trial, title: str, adapters: Factors, strengths: Sequence[float]) -> float:
    """The strength at which adapters are most like their subjects and still follow prompts.

    Args:
        run: validation subjects.
        title: said while images are made.
        adapters: stacked over the subjects.
        strengths: that are tried; those count at which prompts are followed within 5 points of the
            base model alone, or as well as at any.
    """
    alone = run.tried("base", None).prompt_following.mean()
    tried = {s: run.tried(f"{title} at {s:g}", scaled(adapters, s)) for s in strengths}
    follows = {s: float(one.prompt_following.mean()) for s, one in tried.items()}
    least = min(float(alone) - _LOST, max(follows.values()))
    return max(
        (s for s in strengths if follows[s] >= least), key=lambda s: tried[s].likeness.mean()
    )


def _row(name: str, measured: Measured, strength: float | None) -> dict[str, Any]:
    count = len(measured.likeness)
    return {"method": name, "strength": strength, "n": count, **measured.intervals()}


def _paired(ours: str, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """How much one of our methods has more than each other method, subject by subject."""
    return [
        {"method": f"{ours} - {name}", **measured[ours].less(other).intervals()}
        for name, other in measured.items()
        if name not in (ours, "real")
    ]


def _share(name: str, measured: Measured, ceiling: Measured) -> dict[str, Any]:
    """What a method has, as a share of what trained adapters have; None where they have nothing."""
    shares: dict[str, Any] = {}
    for figure in COMPARED:
        ours, whole = getattr(measured, figure), getattr(ceiling, figure)
        shares[figure] = asdict(bootstrap_ratio(ours, whole)) if whole.mean() > 0 else None
    return {"method": name, **shares}


def _memorisation(bundle: Bundle, adapters: Mapping[str, Factors]) -> dict[str, float]:
    """Mean cosine of ΔW to the nearest adapter of the library."""
    known = bundle.decode(bundle.library.latents)
    nearest = {}
    for name in (*OURS, "trained"):
        if name in adapters:
            nearest[name] = cosines(adapters[name], known).amax(dim=1).mean().item()
    return nearest


def _forecasts(
    bundle: Bundle, run: Trial, adapters: Mapping[str, Factors], count: int
) -> dict[str, Any]:
    """How adapters of one condition differ, and whether by as much as they miss the trained one.

    Diffusion samples at temperature 1, whatever suits likeness: a forecast says what there may be.
    Ridge regression with its error on left-out subjects as Gaussian noise is the simplest
    calibrated one.
    """
    library, names = bundle.library, run.subjects.ids
    samplers = [Synthesised(bundle.synthesizer, seed, temperature=1.0) for seed in range(count)]
    drawn = torch.stack([bundle.encode(sampler(run.conditions, names)) for sampler in samplers])
    truth = bundle.encode(adapters["trained"])
    forecasts = {
        name: bundle.encode(factors)[None]
        for name, factors in adapters.items()
        if name != "trained"
    }
    ridge = Ridge(library)
    noise = torch.randn(drawn.shape, generator=torch_stream(run.config.seed, "ridge noise"))
    forecasts["ridge with noise"] = ridge(run.conditions) + ridge.spread * noise
    forecasts["diffusion"] = drawn
    centred = drawn.transpose(0, 1) - library.latents.mean(dim=0)
    return {
        "calibration": [
            {"method": name, "samples": len(samples), **asdict(calibration(samples, truth))}
            for name, samples in forecasts.items()
        ],
        "adapter_diversity": mean_pairwise_distance(centred).mean().item(),
    }
