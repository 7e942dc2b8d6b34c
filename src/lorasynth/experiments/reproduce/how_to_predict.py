"""4.4 and 4.5: v-prediction against x0, and AdaLoRA against AdaNorm."""

from typing import Any

from lorasynth.config import from_dict
from lorasynth.experiments.reproduce.curves import draw_curves
from lorasynth.experiments.reproduce.finding import (
    CLAIMS,
    Finding,
    difference,
    interval,
    judged,
    text,
)
from lorasynth.experiments.reproduce.study import Study
from lorasynth.hypernet import LatentDiffusionConfig, MLPDenoiser, MLPDenoiserConfig

PARAMETERISATIONS = ("v", "x0", "epsilon")
FORMS = ("layer", "product", "residual")
#: Rank at which the three forms are compared.
RANK = 8


@CLAIMS.register("v-prediction")
def v_prediction(study: Study) -> Finding:
    """Holds: v has more likeness than x0, and spreads less over seeds."""
    cells = {
        name: [
            study.diffusion(seed, model=LatentDiffusionConfig(parameterisation=name))
            for seed in study.config.seeds
        ]
        for name in PARAMETERISATIONS
    }
    rows = []
    for name, found in cells.items():
        last = [cell["curve"][-1] for cell in found]
        errors = {k: sum(row[k] for row in last) / len(last) for k in last[0] if "x0_error" in k}
        rows.append(
            {"predicts": name, "likeness": interval([c["likeness"] for c in found]), **errors}
        )
    more = difference(*([cell["likeness"] for cell in cells[name]] for name in ("v", "x0")))
    spreads = {row["predicts"]: row["likeness"]["spread_over_seeds"] for row in rows}
    better, steadier = more["lo"] > 0, spreads["v"] < spreads["x0"]
    return Finding(
        claim="v-prediction is better than x0-prediction in quality and stability",
        section="4.4",
        verdict=judged(holds=better and steadier, partly=better or steadier),
        why=(
            f"Likeness with v less that with x0 is {text(more)}; the means of the seeds spread by "
            f"{spreads['v']:.3f} with v and {spreads['x0']:.3f} with x0."
        ),
        values={"rows": rows, "v_less_x0": more},
        tables={"What is predicted": [{**r, "likeness": text(r["likeness"])} for r in rows]},
        figures={"v-prediction": draw_curves(_curves(cells), ("x0_error", "likeness"))},
    )


@CLAIMS.register("adalora")
def adalora(study: Study) -> Finding:
    """Holds: at equal parameters the best form has 1.3 times the likeness of AdaNorm."""
    plain = [study.diffusion(seed) for seed in study.config.seeds]
    width = MLPDenoiserConfig().width
    cells: dict[str, list[dict[str, Any]]] = {"AdaNorm": plain}
    for form in FORMS:
        cells[f"AdaLoRA, {form}, rank {RANK}"] = _modulated(study, form, RANK, width)
    for rank in study.config.ranks:
        cells[f"AdaLoRA, layer, rank {rank}"] = _modulated(study, "layer", rank, width)
    best = max((name for name in cells if name != "AdaNorm"), key=lambda n: _chosen_by(cells[n]))
    equal = _narrowed(study, best, plain[0]["parameters"], width)
    cells[f"{best}, as many parameters as AdaNorm"] = equal
    rows = [
        {
            "modulation": name,
            "parameters": found[0]["parameters"],
            "seconds": round(sum(c["seconds"] for c in found) / len(found), 1),
            "likeness": interval([c["likeness"] for c in found]),
            "held_out_x0_error": sum(c["curve"][-1]["x0_error"] for c in found) / len(found),
        }
        for name, found in cells.items()
    ]
    base = interval([c["likeness"] for c in plain])
    gain = difference([c["likeness"] for c in equal], [c["likeness"] for c in plain])
    ratio = 1 + gain["mean"] / max(abs(base["mean"]), 1e-6)
    return Finding(
        claim="AdaLoRA gives 30 % more likeness than AdaNorm",
        section="4.5, Figure 6",
        verdict=judged(holds=ratio >= 1.3 and gain["lo"] > 0, partly=gain["lo"] > 0),
        why=(
            f"AdaNorm has a likeness of {text(base)}; {best} at as many parameters has "
            f"{text(gain)} more, {100 * (ratio - 1):.0f} %."
        ),
        values={"rows": rows, "gain_at_equal_parameters": gain},
        tables={"Modulations": [{**r, "likeness": text(r["likeness"])} for r in rows]},
        figures={"adalora": draw_curves(_curves(cells), ("loss", "x0_error", "likeness"))},
    )


def _chosen_by(found: list[dict[str, Any]]) -> float:
    """Likeness of validation subjects at the end of training; test subjects choose nothing."""
    return sum(float(cell["curve"][-1]["likeness"]) for cell in found)


def _modulated(study: Study, form: str, rank: int, width: int) -> list[dict[str, Any]]:
    options = {
        "width": width,
        "modulation": "low_rank",
        "modulation_options": {"form": form, "rank": rank},
    }
    model = LatentDiffusionConfig(denoiser_options=options)
    return [study.diffusion(seed, model=model) for seed in study.config.seeds]


def _narrowed(study: Study, name: str, parameters: int, width: int) -> list[dict[str, Any]]:
    """The modulation called `name` in a net as narrow as it takes to have so many parameters."""
    _, form, ranked = name.split(", ")
    rank = int(ranked.removeprefix("rank "))
    while width > 8 and _parameters(study, form, rank, width) > parameters:
        width -= 8
    return _modulated(study, form, rank, width)


def _parameters(study: Study, form: str, rank: int, width: int) -> int:
    """Of a denoiser that is built and thrown away."""
    options = {
        "width": width,
        "modulation": "low_rank",
        "modulation_options": {"form": form, "rank": rank},
    }
    config = from_dict(MLPDenoiserConfig, options)
    condition_width = study.bundle.synthesizer.encoder.width
    denoiser = MLPDenoiser(config, study.config.latents, condition_width)
    return sum(p.numel() for p in denoiser.parameters())


def _curves(cells: dict[str, list[dict[str, Any]]]) -> dict[str, list[Any]]:
    return {name: [cell["curve"] for cell in found] for name, found in cells.items()}
