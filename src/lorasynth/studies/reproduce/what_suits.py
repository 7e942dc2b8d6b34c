"""4.3: VAE latents are Gaussian and suit diffusion; a U-Net on vectors learns at its ends."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.hypernet import LatentDiffusionConfig
from lorasynth.studies.reproduce.curves import draw_curves
from lorasynth.studies.reproduce.finding import (
    CLAIMS,
    Finding,
    difference,
    flat,
    interval,
    judged,
    text,
)
from lorasynth.studies.reproduce.study import Study

#: What diffusion works on, and the codec that gives it.
SPACES: dict[str, str] = {"scaled vectors": "scaled", "PCA": "pca", "VAE": "vae"}
#: The paper's denoiser, and the one that learns in fewer steps.
DENOISERS = {"U-Net": "unet", "MLP": "mlp"}


def predicting_x0(denoiser: str, space: str) -> LatentDiffusionConfig:
    """The paper's x0-prediction; a U-Net cuts long vectors into patches."""
    cut = denoiser == "unet" and space == "scaled vectors"
    options = {"patch": 512} if cut else {}
    return LatentDiffusionConfig(denoiser=denoiser, denoiser_options=options, parameterisation="x0")


@CLAIMS.register("spaces")
def spaces(study: Study) -> Finding:
    """Holds: diffusion on VAE latents beats that on scaled vectors, which are less Gaussian.

    On each, the denoiser counts that validation subjects choose, all trained for as many steps.
    """
    cells = {(n, space): _trained(study, n, space) for n in DENOISERS for space in SPACES}
    chosen = {space: _best({n: cells[n, space] for n in DENOISERS}) for space in SPACES}
    rows = []
    for space in SPACES:
        measure = partial(_normality, study, space)
        normality = study.cell("normality", _facts(study, space), measure)
        likeness = {n: interval([c["likeness"] for c in cells[n, space]]) for n in DENOISERS}
        rows.append({"space": space, **normality, **likeness})
    layers = study.cell("layers", _facts(study, "scaled vectors"), lambda: _layers(study))
    vae, vectors = ([c["likeness"] for c in cells[chosen[s], s]] for s in ("VAE", "scaled vectors"))
    more = difference(vae, vectors)
    by_name = {row["space"]: row for row in rows}
    gaussian = by_name["VAE"]["kurtosis"] < by_name["scaled vectors"]["kurtosis"]
    reached = ", ".join(f"{s} {text(by_name[s][n])} by the {n}" for s, n in chosen.items())
    kurtosis = ", ".join(f"{row['kurtosis']:.2f}" for row in rows)
    curves = {f"{n}, {space}": [c["curve"] for c in of] for (n, space), of in cells.items()}
    return Finding(
        claim="VAE latents are Gaussian and suit diffusion; scaled vectors fail",
        section="4.3, Figure 5",
        verdict=judged(holds=more["lo"] > 0 and gaussian, partly=more["lo"] > 0 or gaussian),
        why=(
            f"With x0-prediction, after {study.config.slow_steps} steps: {reached}. VAE less "
            f"scaled vectors: {text(more)}. Mean absolute excess kurtosis is, in this order, "
            f"{kurtosis}. Standard deviations of modules differ by a factor of "
            f"{layers['largest'] / layers['smallest']:.1f}."
        ),
        values={"rows": rows, "layers": layers, "vae_less_scaled": more},
        seeds=study.config.seeds,
        tables={"What diffusion works on": [flat(row) for row in rows]},
        figures={"spaces": draw_curves(curves, ("loss", "likeness"))},
    )


def _trained(study: Study, denoiser: str, space: str) -> list[dict[str, Any]]:
    model = predicting_x0(DENOISERS[denoiser], space)
    codec = SPACES[space]
    return [
        study.diffusion(seed, codec=codec, model=model, slow=True) for seed in study.config.seeds
    ]


def _best(cells: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """The denoiser with the highest likeness of validation subjects at the end of training."""
    reached = {n: sum(float(c["curve"][-1]["likeness"]) for c in of) for n, of in cells.items()}
    return max(reached, key=reached.__getitem__)


def _facts(study: Study, space: str) -> dict[str, Any]:
    return {"space": space, **study.codec_options(SPACES[space], study.config.seeds[0])}


def _normality(study: Study, space: str) -> dict[str, float]:
    """How far latents of known adapters are from Gaussian, mean over the numbers that vary.

    That of a codec of the first seed.
    """
    known, _ = study.vectors
    z = study.standard_codec(SPACES[space], study.config.seeds[0]).encode(known)
    z = z[:, z.std(dim=0) > 1e-6]
    z = (z - z.mean(dim=0)) / z.std(dim=0)
    return {
        "kurtosis": float((z.pow(4).mean(dim=0) - 3).abs().mean()),
        "skewness": float(z.pow(3).mean(dim=0).abs().mean()),
        "ks_distance": _kolmogorov_smirnov(z),
    }


def _kolmogorov_smirnov(z: Float[Tensor, "n k"]) -> float:
    """Mean distance between the distribution of each column and the standard normal one."""
    n = len(z)
    normal = torch.special.ndtr(z.sort(dim=0).values)
    steps = torch.arange(n + 1)[:, None] / n
    above, below = (steps[1:] - normal).amax(dim=0), (normal - steps[:-1]).amax(dim=0)
    return float(torch.maximum(above, below).mean())


def _layers(study: Study) -> dict[str, float]:
    """Spread of the adapters' numbers in each module, the smallest and the largest."""
    known, _ = study.vectors
    factors = study.layout.unflatten(known - known.mean(dim=0))
    spreads = torch.stack([factor.B.std() for factor in factors.values()])
    return {"smallest": float(spreads.min()), "largest": float(spreads.max())}


@CLAIMS.register("gradient flow")
def gradient_flow(study: Study) -> Finding:
    """Holds: on scaled vectors the gradient of a weight at the U-Net's ends is twice the middle's.

    (Root mean square over weights and over training.)  Holds: with every seed; partly: on average.
    """
    curves = {
        f"{denoiser}, {space}": [_flow(study, denoiser, space, s) for s in study.config.seeds]
        for denoiser in DENOISERS.values()
        for space in ("scaled vectors", "VAE")
    }
    ends = {name: [_ends_over_middle(rows) for rows in seeds] for name, seeds in curves.items()}
    decides = ends["unet, scaled vectors"]
    mean = {name: sum(values) / len(values) for name, values in ends.items()}
    than_on_latents = "smaller" if mean["unet, VAE"] < mean["unet, scaled vectors"] else "not"
    return Finding(
        claim="A U-Net on scaled vectors learns at its ends only",
        section="4.3",
        verdict=judged(holds=min(decides) > 2, partly=mean["unet, scaled vectors"] > 2),
        why="Gradient of a weight in the first and last layers over that of one in between, mean "
        "over seeds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in mean.items())
        + f". Were vectors the reason it would be smaller on latents; it is {than_on_latents}.",
        values={"curves": curves, "ends_over_middle": ends},
        seeds=study.config.seeds,
        figures={"gradient-flow": _draw_flow({name: seeds[0] for name, seeds in curves.items()})},
    )


def _flow(study: Study, denoiser: str, space: str, seed: int) -> list[dict[str, float]]:
    """Each layer's gradient, at each row of the curve."""
    found = study.diffusion(seed, codec=SPACES[space], model=predicting_x0(denoiser, space))
    kept = ("step", "gradient_", "weight_")
    return [
        {name: value for name, value in row.items() if name.startswith(kept)}
        for row in found["curve"]
    ]


#: Layers at a denoiser's ends, and those that hidden states pass between them.
_ENDS = ("enter", "leave")
_MIDDLE = ("down", "coarser", "bottleneck", "finer", "join", "up", "blocks")


def _ends_over_middle(rows: Sequence[dict[str, float]]) -> float:
    """Mean gradient of a weight in a layer at the ends, over that in one of the middle."""

    def mean(parts: tuple[str, ...]) -> float:
        values = [
            value
            for row in rows
            for key, value in row.items()
            if key.startswith("weight_") and key.split("_")[2].startswith(parts)
        ]
        return sum(values) / max(len(values), 1)

    return mean(_ENDS) / max(mean(_MIDDLE), 1e-12)


def _draw_flow(curves: dict[str, list[dict[str, float]]]) -> Figure:
    """The share of the gradient's norm in each layer, over training."""
    figure = Figure(figsize=(9, 6), dpi=130)
    for axes, (name, rows) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        keys = [key for key in rows[0] if key.startswith("gradient_")]
        image = torch.tensor([[row[key] for row in rows] for key in keys])
        axes.imshow(image, aspect="auto", cmap="viridis", vmin=0)
        axes.set_yticks(range(len(keys)), [key.split("_", 2)[2] for key in keys], fontsize=5)
        axes.set_xticks(range(len(rows)), [f"{row['step']:g}" for row in rows])
        axes.set(title=name, xlabel="step")
    figure.tight_layout()
    return figure
