"""4.3, 4.4, 4.5: what diffusion works on, how gradients flow, what is predicted, AdaLoRA."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lorasynth.core.config import from_dict
from lorasynth.core.figures import Line, curves
from lorasynth.hypernet import LatentDiffusionConfig, MLPDenoiser, MLPDenoiserConfig
from lorasynth.studies.finding import (
    SIMILARITY,
    BySeed,
    Finding,
    by_seed,
    claim,
    difference,
    interval,
    judged,
    listed,
)
from lorasynth.studies.study import Study

#: What training a hypernetwork gave, for each seed.
Cells: TypeAlias = Sequence[Mapping[str, Any]]

#: What diffusion works on, and the codec that gives it.
SPACES: dict[str, str] = {"scaled vectors": "scaled", "PCA": "pca", "VAE": "vae"}
#: The paper's denoiser, and the one that learns in fewer steps.
DENOISERS = {"U-Net": "unet", "MLP": "mlp"}
PARAMETERISATIONS = ("v", "x0", "epsilon")
FORMS = ("layer", "product", "residual")
#: Rank at which the three forms are compared.
RANK = 8


def draw_training(cells: Mapping[str, Cells], names: Sequence[str]) -> Figure:
    """One panel for each figure of the curve of training; a line for each cell, over its seeds."""
    panels: dict[str, list[Line]] = {name.replace("_", " "): [] for name in names}
    for label, seeds in cells.items():
        steps = [row["step"] for row in seeds[0]["curve"]]
        for name, lines in zip(names, panels.values(), strict=True):
            values = torch.tensor([[row[name] for row in cell["curve"]] for cell in seeds])
            ends = zip(*(v.tolist() for v in (values.mean(0), *values.aminmax(dim=0))), strict=True)
            spans = [dict(zip(("mean", "lo", "hi"), end, strict=True)) for end in ends]
            lines.append(Line(label, steps, spans, "-"))
    return curves(panels, "step")


def predicting_x0(denoiser: str, space: str) -> LatentDiffusionConfig:
    """The paper's x0-prediction; a U-Net cuts long vectors into patches."""
    cut = denoiser == "unet" and space == "scaled vectors"
    options = {"patch": 512} if cut else {}
    return LatentDiffusionConfig(denoiser=denoiser, denoiser_options=options, parameterisation="x0")


def _chosen_by(cells: Cells) -> float:
    """Similarity of validation subjects at the end of training; test subjects choose nothing."""
    return sum(float(cell["curve"][-1][SIMILARITY]) for cell in cells)


@claim(
    "spaces",
    says="VAE latents are Gaussian and suit diffusion; scaled vectors fail",
    section="4.3, Figure 5",
    rule="Holds: diffusion on VAE latents has more identity similarity than on scaled vectors, "
    "which are less Gaussian; partly: one of them. On each, the denoiser counts that validation "
    "subjects choose, all trained for as many steps.",
)
def spaces(study: Study) -> Finding:
    """Train both denoisers on all three spaces."""
    config = study.config
    cells = {
        (name, space): [
            study.diffusion(
                seed, codec=codec, model=predicting_x0(DENOISERS[name], space), slow=True
            )
            for seed in config.seeds
        ]
        for name in DENOISERS
        for space, codec in SPACES.items()
    }
    chosen = {
        space: max(DENOISERS, key=lambda name, space=space: _chosen_by(cells[name, space]))  # type: ignore[misc]
        for space in SPACES
    }
    rows: list[dict[str, Any]] = [
        {"space": space, **_normality(study, space)}
        | {name: interval(by_seed(cells[name, space])) for name in DENOISERS}
        for space in SPACES
    ]
    layers = study.cell("layers", _space(study, "scaled vectors"), lambda: _layers(study))
    by_name = {row["space"]: row for row in rows}
    vae, vectors = (by_seed(cells[chosen[s], s]) for s in ("VAE", "scaled vectors"))
    more = difference(vae, vectors)
    gaussian = by_name["VAE"]["kurtosis"] < by_name["scaled vectors"]["kurtosis"]
    named = {f"{name}, {space}": found for (name, space), found in cells.items()}
    return Finding(
        verdict=judged(holds=more["lo"] > 0 and gaussian, partly=more["lo"] > 0 or gaussian),
        why={
            f"identity similarity after {config.slow_steps} steps": {
                f"{space} ({name})": by_name[space][name] for space, name in chosen.items()
            },
            "VAE less scaled vectors": more,
            "standard deviation of modules": layers,
            "mean absolute excess kurtosis": {row["space"]: row["kurtosis"] for row in rows},
        },
        tables={"What diffusion works on": rows},
        figures={"spaces": draw_training(named, ("loss", SIMILARITY))},
    )


def _space(study: Study, space: str) -> dict[str, Any]:
    return {"space": space, **study.codec_options(SPACES[space], study.config.seeds[0])}


def _normality(study: Study, space: str) -> dict[str, float]:
    """How far latents of known adapters are from Gaussian, mean over those that vary.

    That of a codec of the first seed.
    """

    def measure() -> dict[str, float]:
        known, _ = study.vectors
        z = study.standard_codec(SPACES[space], study.config.seeds[0]).encode(known)
        z = z[:, z.std(dim=0) > 1e-6]
        z = (z - z.mean(dim=0)) / z.std(dim=0)
        return {"kurtosis": float((z.pow(4).mean(dim=0) - 3).abs().mean())}

    return study.cell("normality", _space(study, space), measure)


def _layers(study: Study) -> dict[str, float]:
    """Standard deviation of the adapters' values in each module, the smallest and the largest."""
    known, _ = study.vectors
    factors = study.layout.unflatten(known - known.mean(dim=0))
    deviations = torch.stack([factor.B.std() for factor in factors.values()])
    return {"smallest": float(deviations.min()), "largest": float(deviations.max())}


#: Layers at a denoiser's ends, and those that hidden states pass between them.
_ENDS = ("enter", "leave", "proj_in", "proj_out")
_MIDDLE = ("down", "coarser", "bottleneck", "finer", "join", "up", "blocks")


@claim(
    "gradient flow",
    says="A U-Net on scaled vectors learns at its ends only",
    section="4.3",
    rule="Holds: on scaled vectors the gradient of a weight at the U-Net's ends is twice the "
    "middle's (root mean square over weights and over training) with every seed; partly: on "
    "average.",
)
def gradient_flow(study: Study) -> Finding:
    """Compare gradients at the ends with those of the middle."""
    flows = {
        f"{denoiser}, {space}": [
            study.diffusion(seed, codec=SPACES[space], model=predicting_x0(denoiser, space))[
                "curve"
            ]
            for seed in study.config.seeds
        ]
        for denoiser in DENOISERS.values()
        for space in ("scaled vectors", "VAE")
    }
    ends = {name: [_ends_over_middle(rows) for rows in seeds] for name, seeds in flows.items()}
    mean = {name: sum(values) / len(values) for name, values in ends.items()}
    decides = "unet, scaled vectors"
    layers = {name: _by_layer(seeds[0][-1], "gradient_") for name, seeds in flows.items()}
    lines = [Line(name, range(len(found)), [*found.values()]) for name, found in layers.items()]
    return Finding(
        verdict=judged(holds=min(ends[decides]) > 2, partly=mean[decides] > 2),
        why={"gradient of a weight at the ends over one in between, mean over seeds": mean},
        figures={"gradient-flow": curves({"share of the gradient's norm": lines}, "layer")},
    )


def _by_layer(row: Mapping[str, float], kind: str) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(kind)}


def _ends_over_middle(rows: Sequence[Mapping[str, float]]) -> float:
    """Mean gradient of a weight in a layer at the ends, over that in one of the middle."""

    def mean(parts: tuple[str, ...]) -> float:
        found = (_by_layer(row, "weight_").items() for row in rows)
        values = [v for row in found for key, v in row if key.split("_", 2)[2].startswith(parts)]
        return sum(values) / max(len(values), 1)

    return mean(_ENDS) / max(mean(_MIDDLE), 1e-12)


@claim(
    "v-prediction",
    says="v-prediction is better than x0-prediction in quality and stability",
    section="4.4",
    rule="Holds: v has more identity similarity than x0, and a subject's varies less over seeds; "
    "partly: one of them.",
)
def v_prediction(study: Study) -> Finding:
    """Train with each parameterisation."""
    cells = {
        name: [
            study.diffusion(seed, model=LatentDiffusionConfig(parameterisation=name))
            for seed in study.config.seeds
        ]
        for name in PARAMETERISATIONS
    }
    rows: list[dict[str, Any]] = []
    for name, found in cells.items():
        last = [cell["curve"][-1] for cell in found]
        errors = {k: sum(row[k] for row in last) / len(last) for k in last[0] if "x0_error" in k}
        similarity = by_seed(found)
        stds = interval([_stds(similarity)])
        rows.append(
            {"predicts": name, "similarity": interval(similarity), "std_over_seeds": stds, **errors}
        )
    v, x0 = (by_seed(cells[name]) for name in ("v", "x0"))
    more, steadier = difference(v, x0), difference([_stds(x0)], [_stds(v)])
    better, steady = more["lo"] > 0, steadier["lo"] > 0
    return Finding(
        verdict=judged(holds=better and steady, partly=better or steady),
        why={
            "identity similarity, v less x0": more,
            "standard deviation over seeds, x0 less v": steadier,
            "error in x0 at the end": {row["predicts"]: row["x0_error"] for row in rows},
        },
        tables={"What is predicted": rows},
        figures={"v-prediction": draw_training(cells, ("x0_error", SIMILARITY))},
    )


def _stds(seeds: BySeed) -> list[float]:
    """Standard deviation of each subject's figure over the seeds."""
    return listed(torch.tensor(seeds, dtype=torch.float64).std(dim=0))


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


@claim(
    "adalora",
    says="AdaLoRA gives 30 % more identity similarity than AdaNorm, and finer control",
    section="4.5, Figure 6",
    rule="Holds: with as many parameters as AdaNorm, and as many operations, 1.3 times its "
    "identity similarity; partly: more with either cost. The form and rank are those that "
    "validation subjects choose; the net is narrowed until it costs no more.",
)
def adalora(study: Study) -> Finding:
    """Compare forms and ranks of AdaLoRA, and the best one at equal cost."""
    width = MLPDenoiserConfig().width
    plain = [study.diffusion(seed) for seed in study.config.seeds]
    tried = [Modulated(form, RANK, width) for form in FORMS]
    tried += [Modulated("layer", rank, width) for rank in study.config.ranks if rank != RANK]
    cells = {one: _modulated(study, one) for one in tried}
    best = max(cells, key=lambda one: _chosen_by(cells[one]))
    named: dict[str, Cells] = {"AdaNorm": plain} | {one.name: of for one, of in cells.items()}
    base = interval(by_seed(plain))
    gains, ratios = {}, {}
    for narrow, cost in _at_equal_cost(study, best).items():
        found = _modulated(study, narrow)
        named[f"{best.name}, width {narrow.width}, as many {cost} as AdaNorm"] = found
        gains[cost] = {
            figure: difference(by_seed(found, figure), by_seed(plain, figure))
            for figure in (SIMILARITY, "attribute_accuracy")
        }
        ratios[cost] = 1 + gains[cost][SIMILARITY]["mean"] / max(abs(base["mean"]), 1e-6)
    rows = [_row(name, found) for name, found in named.items()]
    surely = [gain[SIMILARITY]["lo"] > 0 for gain in gains.values()]
    return Finding(
        verdict=judged(holds=all(surely) and min(ratios.values()) >= 1.3, partly=any(surely)),
        why={
            "identity similarity of AdaNorm": base,
            **{f"{best.name}, as many {cost}, more": gain for cost, gain in gains.items()},
        },
        tables={"Modulations": rows},
        figures={"adalora": draw_training(named, ("loss", "x0_error", SIMILARITY))},
    )


def _row(name: str, found: Cells) -> dict[str, Any]:
    return {
        "modulation": name,
        "parameters": found[0]["parameters"],
        "seconds": round(sum(c["seconds"] for c in found) / len(found), 1),
        "similarity": interval(by_seed(found)),
        "attributes": interval(by_seed(found, "attribute_accuracy")),
        "held_out_x0_error": sum(c["curve"][-1]["x0_error"] for c in found) / len(found),
    }


def _modulated(study: Study, modulated: Modulated) -> list[dict[str, Any]]:
    model = LatentDiffusionConfig(denoiser_options=modulated.options)
    return [study.diffusion(seed, model=model) for seed in study.config.seeds]


def _at_equal_cost(study: Study, modulated: Modulated) -> dict[Modulated, str]:
    """It in a net that costs no more than with AdaNorm, and in what; one net may do for all."""

    def denoiser(options: Mapping[str, Any]) -> MLPDenoiser:
        config = from_dict(MLPDenoiserConfig, options)
        return MLPDenoiser(config, study.latents, study.bundle.synthesizer.encoder.width)

    costs: dict[Modulated, str] = {}
    for cost, count in COSTS.items():
        most, narrow = count(denoiser({})), modulated
        while narrow.width > 8 and count(denoiser(narrow.options)) > most:
            narrow = narrow._replace(width=narrow.width - 8)
        costs[narrow] = f"{costs[narrow]} and {cost}" if narrow in costs else cost
    return costs


def _parameters(denoiser: nn.Module) -> int:
    return sum(parameter.numel() for parameter in denoiser.parameters())


def _operations(denoiser: MLPDenoiser) -> int:
    """Multiplications and additions for one sample in one step of training."""
    x_t, condition = torch.zeros(1, denoiser.latents), torch.zeros(1, denoiser.condition_width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser.denoise(x_t, torch.zeros(1), denoiser.prepare(condition))
    return int(counter.get_total_flops())


#: What a modulation may cost as much of as AdaNorm.
COSTS: Mapping[str, Callable[[Any], int]] = {"parameters": _parameters, "operations": _operations}
