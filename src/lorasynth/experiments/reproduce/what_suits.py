"""4.3: VAE latents are Gaussian and suit diffusion; a U-Net on vectors learns at its ends."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

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
from lorasynth.hypernet import LatentDiffusionConfig

#: What diffusion works on, with the codec's options.
SPACES: dict[str, tuple[str, dict[str, Any]]] = {
    "scaled vectors": ("scaled", {}),
    "PCA": ("pca", {}),
    "VAE": ("vae", {"beta": 0.01}),
}


def unet(space: str) -> LatentDiffusionConfig:
    """The paper's U-Net with x0-prediction; long vectors are cut into patches."""
    options = {"patch": 64} if space == "scaled vectors" else {}
    return LatentDiffusionConfig(denoiser="unet", denoiser_options=options, parameterisation="x0")


@CLAIMS.register("spaces")
def spaces(study: Study) -> Finding:
    """Holds: diffusion on VAE latents beats that on scaled vectors, which are less Gaussian."""
    cells = {
        name: [
            study.diffusion(
                seed, codec=codec, codec_options=_options(study, name), model=unet(name)
            )
            for seed in study.config.seeds
        ]
        for name, (codec, _) in SPACES.items()
    }
    rows = []
    for name in SPACES:
        measure = partial(_normality, study, name)
        normality = study.cell("normality", _facts(study, name), measure)
        likeness = interval([cell["likeness"] for cell in cells[name]])
        rows.append({"space": name, **normality, "likeness": likeness})
    layers = study.cell("layers", _facts(study, "scaled vectors"), lambda: _layers(study))
    more = difference(
        [cell["likeness"] for cell in cells["VAE"]],
        [cell["likeness"] for cell in cells["scaled vectors"]],
    )
    by_name = {row["space"]: row for row in rows}
    gaussian = by_name["VAE"]["kurtosis"] < by_name["scaled vectors"]["kurtosis"]
    figure = draw_curves({n: [c["curve"] for c in cells[n]] for n in SPACES}, ("loss", "likeness"))
    return Finding(
        claim="VAE latents are Gaussian and suit diffusion; scaled vectors fail",
        section="4.3, Figure 5",
        verdict=judged(holds=more["lo"] > 0 and gaussian, partly=more["lo"] > 0 or gaussian),
        why=(
            f"A U-Net with x0-prediction reaches {text(by_name['VAE']['likeness'])} on VAE latents "
            f"and {text(by_name['scaled vectors']['likeness'])} on scaled vectors, "
            f"{text(by_name['PCA']['likeness'])} on PCA. Mean absolute excess kurtosis is "
            f"{by_name['VAE']['kurtosis']:.2f}, {by_name['scaled vectors']['kurtosis']:.2f} and "
            f"{by_name['PCA']['kurtosis']:.2f}. Standard deviations of modules differ by a factor "
            f"of {layers['largest'] / layers['smallest']:.1f}."
        ),
        values={"rows": rows, "layers": layers, "vae_less_scaled": more},
        tables={"What diffusion works on": [{**r, "likeness": text(r["likeness"])} for r in rows]},
        figures={"spaces": figure},
    )


def _options(study: Study, space: str) -> dict[str, Any]:
    options = SPACES[space][1]
    return {**options, "epochs": study.config.vae_epochs} if space == "VAE" else options


def _facts(study: Study, space: str) -> dict[str, Any]:
    latents = study.config.latents
    return {"space": [space, _options(study, space), latents], "library": study.config.library}


def _normality(study: Study, space: str) -> dict[str, float]:
    """How far held-out and known latents are from Gaussian, mean over the numbers that vary."""
    codec, options = SPACES[space][0], _options(study, space)
    latents = {} if codec == "scaled" else {"latents": study.config.latents}
    known, _ = study.vectors("ours")
    z = study.codec(codec, {**latents, **options}).encode(known)
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
    known, _ = study.vectors("ours")
    factors = study.layout("ours").unflatten(known - known.mean(dim=0))
    spreads = torch.stack([factor.B.std() for factor in factors.values()])
    return {"smallest": float(spreads.min()), "largest": float(spreads.max())}


@CLAIMS.register("gradient flow")
def gradient_flow(study: Study) -> Finding:
    """Holds: in the U-Net, on scaled vectors, the ends' gradients are twice the bottleneck's."""
    shares = {
        f"{denoiser}, {space}": _shares(study, denoiser, space)
        for denoiser in ("unet", "mlp")
        for space in ("scaled vectors", "VAE")
    }
    ends = {name: _ends_over_middle(rows) for name, rows in shares.items()}
    at_ends = ends["unet, scaled vectors"] > 2
    return Finding(
        claim="A U-Net on scaled vectors learns at its ends only",
        section="4.3",
        verdict=judged(holds=at_ends, partly=ends["unet, scaled vectors"] > 1),
        why="Gradient norm of the first and last layers over that of the middle: "
        + ", ".join(f"{name} {value:.1f}" for name, value in ends.items())
        + ".",
        values={"shares": shares, "ends_over_middle": ends},
        figures={"gradient-flow": _draw_flow(shares)},
    )


def _shares(study: Study, denoiser: str, space: str) -> list[dict[str, float]]:
    """Share of the gradient in each layer, at each row of the curve; the first seed."""
    codec = SPACES[space][0]
    model = unet(space) if denoiser == "unet" else LatentDiffusionConfig(parameterisation="x0")
    found = study.diffusion(
        study.config.seeds[0], codec=codec, codec_options=_options(study, space), model=model
    )
    return [
        {name: value for name, value in row.items() if name.startswith("gradient_")}
        for row in found["curve"]
    ]


#: Parts of a denoiser between its first and its last layers.
_MIDDLE = ("bottleneck", "blocks")
_ENDS = ("enter", "leave")


def _ends_over_middle(rows: Sequence[dict[str, float]]) -> float:
    """Mean share of a layer at the ends over that of one in the middle."""

    def mean(parts: tuple[str, ...]) -> float:
        values = [v for row in rows for k, v in row.items() if k.split("_")[2].startswith(parts)]
        return sum(values) / max(len(values), 1)

    return mean(_ENDS) / max(mean(_MIDDLE), 1e-12)


def _draw_flow(shares: dict[str, list[dict[str, float]]]) -> Figure:
    figure = Figure(figsize=(9, 6), dpi=130)
    for axes, (name, rows) in zip(figure.subplots(2, 2).flat, shares.items(), strict=True):
        labels = [key.split("_", 2)[2] for key in rows[0]]
        image = torch.tensor([list(row.values()) for row in rows]).T
        axes.imshow(image, aspect="auto", cmap="viridis", vmin=0)
        axes.set_yticks(range(len(labels)), labels, fontsize=5)
        axes.set(title=name, xlabel="rows of the curve")
    figure.tight_layout()
    return figure
