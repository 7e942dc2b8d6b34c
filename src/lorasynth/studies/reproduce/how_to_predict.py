"""4.4 and 4.5: v-prediction against x0, and AdaLoRA against AdaNorm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lorasynth.core.config import from_dict
from lorasynth.hypernet import LatentDiffusionConfig, MLPDenoiser, MLPDenoiserConfig
from lorasynth.studies.reproduce.curves import draw_curves
from lorasynth.studies.reproduce.finding import (
    CLAIMS,
    Finding,
    difference,
    flat,
    interval,
    judged,
    spreads,
    text,
)
from lorasynth.studies.reproduce.study import Study

PARAMETERISATIONS = ("v", "x0", "epsilon")
FORMS = ("layer", "product", "residual")
#: Rank at which the three forms are compared.
RANK = 8


@CLAIMS.register("v-prediction")
def v_prediction(study: Study) -> Finding:
    """Holds: v has more likeness than x0, and a subject's likeness spreads less over seeds."""
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
        likeness = _figures(found, "likeness")
        spread = interval([spreads(likeness)])
        rows.append(
            {
                "predicts": name,
                "likeness": interval(likeness),
                "spread_over_seeds": spread,
                **errors,
            }
        )
    v, x0 = (_figures(cells[name], "likeness") for name in ("v", "x0"))
    more, steadier = difference(v, x0), difference([spreads(x0)], [spreads(v)])
    better, steady = more["lo"] > 0, steadier["lo"] > 0
    return Finding(
        claim="v-prediction is better than x0-prediction in quality and stability",
        section="4.4",
        verdict=judged(holds=better and steady, partly=better or steady),
        why=(
            f"Likeness with v less that with x0 is {text(more)}; a subject's likeness spreads over "
            f"the seeds by {text(rows[0]['spread_over_seeds'])} with v, and by {text(steadier)} "
            f"more with x0. At the end the error in x0 of held-out latents, which no image "
            f"tells of, is {rows[0]['x0_error']:.3f} with v and {rows[1]['x0_error']:.3f} with x0."
        ),
        values={"rows": rows, "v_less_x0": more, "spread_of_x0_less_v": steadier},
        seeds=study.config.seeds,
        tables={"What is predicted": [flat(row) for row in rows]},
        figures={"v-prediction": draw_curves(_curves(cells), ("x0_error", "likeness"))},
    )


class Modulated(NamedTuple):
    """A denoiser with the paper's AdaLoRA: its form and rank, and the width of the net."""

    form: str
    rank: int
    width: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"AdaLoRA, {self.form}, rank {self.rank}"

    @property
    def options(self) -> dict[str, Any]:
        """Of the denoiser."""
        modulation = {"form": self.form, "rank": self.rank}
        return {"width": self.width, "modulation": "low_rank", "modulation_options": modulation}


@CLAIMS.register("adalora")
def adalora(study: Study) -> Finding:
    """Holds: with as many parameters as AdaNorm, and as many operations, 1.3 times its likeness.

    The form and rank are those with the most likeness of validation subjects; the net is narrowed
    until it costs no more.  Partly: more likeness with either cost.
    """
    width = MLPDenoiserConfig().width
    plain = [study.diffusion(seed) for seed in study.config.seeds]
    tried = [Modulated(form, RANK, width) for form in FORMS]
    tried += [Modulated("layer", rank, width) for rank in study.config.ranks if rank != RANK]
    cells = {one: _cells(study, one) for one in tried}
    best = max(cells, key=lambda one: _chosen_by(cells[one]))
    named = {"AdaNorm": plain} | {one.name: found for one, found in cells.items()}
    base = interval(_figures(plain, "likeness"))
    gains, ratios = {}, {}
    for narrow, cost in _at_equal_cost(study, best).items():
        found = _cells(study, narrow)
        named[f"{best.name}, width {narrow.width}, as many {cost} as AdaNorm"] = found
        gains[cost] = {
            figure: difference(_figures(found, figure), _figures(plain, figure))
            for figure in ("likeness", "attribute_accuracy")
        }
        ratios[cost] = 1 + gains[cost]["likeness"]["mean"] / max(abs(base["mean"]), 1e-6)
    rows = [_row(name, found) for name, found in named.items()]
    surely = [gain["likeness"]["lo"] > 0 for gain in gains.values()]
    return Finding(
        claim="AdaLoRA gives 30 % more likeness than AdaNorm, and finer control",
        section="4.5, Figure 6",
        verdict=judged(holds=all(surely) and min(ratios.values()) >= 1.3, partly=any(surely)),
        why=f"AdaNorm has a likeness of {text(base)}. "
        + " ".join(
            f"{best.name} with as many {cost} has {text(gain['likeness'])} more, "
            f"{100 * (ratios[cost] - 1):.0f} %, and gets {text(gain['attribute_accuracy'])} more "
            "of the attributes right."
            for cost, gain in gains.items()
        ),
        values={"rows": rows, "gains": gains},
        seeds=study.config.seeds,
        tables={"Modulations": [flat(row) for row in rows]},
        figures={"adalora": draw_curves(_curves(named), ("loss", "x0_error", "likeness"))},
    )


def _row(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "modulation": name,
        "parameters": found[0]["parameters"],
        "seconds": round(sum(c["seconds"] for c in found) / len(found), 1),
        "likeness": interval(_figures(found, "likeness")),
        "attributes": interval(_figures(found, "attribute_accuracy")),
        "held_out_x0_error": sum(c["curve"][-1]["x0_error"] for c in found) / len(found),
    }


def _figures(found: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """A figure of each subject, by seed."""
    return [cell[name] for cell in found]


def _chosen_by(found: list[dict[str, Any]]) -> float:
    """Likeness of validation subjects at the end of training; test subjects choose nothing."""
    return sum(float(cell["curve"][-1]["likeness"]) for cell in found)


def _cells(study: Study, modulated: Modulated) -> list[dict[str, Any]]:
    model = LatentDiffusionConfig(denoiser_options=modulated.options)
    return [study.diffusion(seed, model=model) for seed in study.config.seeds]


def _narrowed(study: Study, modulated: Modulated, cost: Callable[[nn.Module], int]) -> Modulated:
    """The same in a net as narrow as it takes to cost no more than the default one with AdaNorm."""
    most = cost(_denoiser(study, {}))
    while modulated.width > 8 and cost(_denoiser(study, modulated.options)) > most:
        modulated = modulated._replace(width=modulated.width - 8)
    return modulated


def _at_equal_cost(study: Study, modulated: Modulated) -> dict[Modulated, str]:
    """It in a net that costs no more than with AdaNorm, and in what; one net may do for all."""
    costs: dict[Modulated, str] = {}
    for cost, count in COSTS.items():
        narrow = _narrowed(study, modulated, count)
        costs[narrow] = f"{costs[narrow]} and {cost}" if narrow in costs else cost
    return costs


def _denoiser(study: Study, options: Mapping[str, Any]) -> MLPDenoiser:
    """An untrained one, to be counted."""
    config = from_dict(MLPDenoiserConfig, options)
    return MLPDenoiser(config, study.latents, study.bundle.synthesizer.encoder.width)


def _parameters(denoiser: nn.Module) -> int:
    return sum(parameter.numel() for parameter in denoiser.parameters())


def _operations(denoiser: MLPDenoiser) -> int:
    """Multiplications and additions for one sample in one step of training."""
    x_t, condition = torch.zeros(1, denoiser.latents), torch.zeros(1, denoiser.condition_width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser.denoise(x_t, torch.zeros(1), denoiser.prepare(condition))
    return int(counter.get_total_flops())


#: What a modulation may cost as much of as AdaNorm.
COSTS: Mapping[str, Callable[[Any], int]] = {
    "parameters": _parameters,
    "operations": _operations,
}


def _curves(cells: dict[str, list[dict[str, Any]]]) -> dict[str, list[Any]]:
    return {name: [cell["curve"] for cell in found] for name, found in cells.items()}
