"""Likeness against the size of the library, for the hypernetwork and for simple baselines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lorasynth.codec import fit_codec
from lorasynth.collect.embedding import column_of
from lorasynth.core.config import to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.core.figures import bars, save_figure
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.evaluation.trial import Instruments, Trial, TrialConfig
from lorasynth.hypernet import TrainingSet
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.hypernet.train import train as train_hypernet
from lorasynth.library import Library
from lorasynth.studies.methods import methods
from lorasynth.studies.reports import kept_report
from lorasynth.synthesizer import Synthesizer


def doubled(whole: int, least: int = 125) -> list[int]:
    """Sizes of libraries: `least` and its doubles, up to two thirds of the whole; and the whole."""
    sizes = [least << i for i in range(whole.bit_length()) if least << i <= whole / 1.5]
    return [*sizes, whole]


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """What is measured.

    Attributes:
        sizes: of the libraries, each the first rows of the whole one.
        codec: name of the codec.
        latents: of the codec; fewer for libraries that have fewer.
        hypernet: training of the hypernetwork, the same for all sizes.
        temperature: of its noise.
        trial: the subjects.
    """

    sizes: tuple[int, ...]
    codec: str = "pca"
    latents: int = 128
    hypernet: HypernetConfig
    temperature: float = 0.5
    trial: TrialConfig


def growth(
    instruments: Instruments,
    library: Library,
    config: GrowthConfig,
    folder: Path,
    pretrained: Synthesizer | None = None,
) -> list[dict[str, Any]]:
    """Measure every size; each is a file of `folder`, and not measured again.

    Args:
        instruments: what makes images, and what judges them.
        library: its subjects embedded by the encoder that makes the conditions.
        config: what is measured.
        folder: for the reports and the checkpoints of the hypernetworks.
        pretrained: what diffusion is relative to; None for nothing.

    Raises:
        ConfigError: the library is smaller than the largest size.
    """
    if max(config.sizes) > len(library):
        raise ConfigError(
            f"the library must hold {max(config.sizes)} adapters, but holds {len(library)}: give "
            "smaller sizes, or collect more"
        )
    run, reports = Trial(instruments, config.trial, folder / "measured"), []
    for size in sorted(config.sizes):
        asked = {
            "config": to_dict(config),
            "anchor": None if pretrained is None else pretrained.fingerprint,
            "library": library.fingerprint,
            "parts": instruments.fingerprints,
            "size": size,
        }
        checkpoint = folder / f"{size}.safetensors"
        measure = partial(_measure, run, library, config, size, checkpoint, pretrained)
        title = f"library of {size}"
        reports.append(kept_report(folder / f"{size}.json", asked, title, measure))
    return reports


def _measure(
    run: Trial,
    library: Library,
    config: GrowthConfig,
    size: int,
    checkpoint: Path,
    pretrained: Synthesizer | None,
) -> dict[str, Any]:
    instruments, part = run.instruments, library.select(range(size))
    codec = fit_codec(config.codec, part, {"latents": min(config.latents, size - 1)})
    known = LatentLibrary.encode(part, codec, column_of(instruments.conditioner))
    data = TrainingSet(latents=known.latents, conditions=known.conditions)
    anchor = None if pretrained is None else pretrained.regression_in(codec)
    hypernet = train_hypernet(data, config.hypernet, anchor=anchor, checkpoint=checkpoint)
    synthesizer = Synthesizer.of(
        instruments.base, library.layout, instruments.conditioner, hypernet, codec
    )
    synthesizer = replace(synthesizer, temperature=config.temperature)
    rows = {}
    for name, method in methods(synthesizer, pretrained, known, config.trial.seed).items():
        measured = run.tried(name, method(run.conditions, run.subjects.ids))
        rows[name] = measured.intervals("likeness", "likeness_second")
    return {"methods": rows}


def extrapolate(sizes: Sequence[int], likeness: Sequence[float]) -> tuple[float, float, float]:
    """Fit a - b n^-c by least squares, with c searched on a grid; at least three sizes.

    Returns:
        a, the likeness of an endless library; b; c.
    """
    n, y = np.asarray(sizes, float), np.asarray(likeness, float)
    fits = []
    for c in np.linspace(0.05, 2.0, 79):
        design = np.stack([np.ones_like(n), -(n**-c)], axis=1)
        (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
        fits.append((float(np.square(design @ (a, b) - y).sum()), float(a), float(b), float(c)))
    _, a, b, c = min(fits)
    return a, b, c


def draw_growth(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """Write likeness against size as a PNG, with the fitted curve of the hypernetwork."""
    sizes = [report["size"] for report in reports]
    figure = Figure(figsize=(6.4, 4.2), dpi=150)
    axes = figure.subplots()
    for name in reports[0]["methods"]:
        rows = [report["methods"][name]["likeness"] for report in reports]
        means = [row["mean"] for row in rows]
        axes.errorbar(sizes, means, yerr=bars(rows), fmt="o-", capsize=2, label=name)
        if name == "diffusion" and len(sizes) > 2:
            a, b, c = extrapolate(sizes, means)
            ahead = np.geomspace(min(sizes), 10 * max(sizes), 100)
            label = f"diffusion: {a:.2f} - {b:.2g} n^-{c:.2g}"
            axes.plot(ahead, a - b * ahead**-c, "k--", linewidth=0.8, label=label)
    axes.set(xscale="log", xlabel="adapters in the library", ylabel="likeness")
    axes.legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path)
