"""Identity similarity against the size of the library, for the hypernetwork and for baselines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lorasynth.codec import fit_codec
from lorasynth.collect.embedding import column_of
from lorasynth.core.cache import Cache
from lorasynth.core.errors import ConfigError
from lorasynth.core.figures import Line, curves
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.evaluation.baselines import BASELINES
from lorasynth.evaluation.benchmark import Benchmark
from lorasynth.evaluation.contenders import Parts, contenders_of
from lorasynth.evaluation.report import COMPARED
from lorasynth.hypernet import TrainingSet
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.hypernet.train import train as train_hypernet
from lorasynth.library import Library
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
        hypernet: training of the hypernetwork, the same for all sizes.
        latents: of the codec; fewer for libraries that have fewer.
    """

    sizes: Sequence[int]
    hypernet: HypernetConfig
    latents: int = 128


def growth(
    run: Benchmark, parts: Parts, library: Library, config: GrowthConfig, folder: Path
) -> list[dict[str, Any]]:
    """Measure every size; what is measured is kept, with the hypernetworks' checkpoints.

    Args:
        run: the subjects.
        parts: the synthesizer, whose encoder and temperature are used, and the regression that
            diffusion is around, if there is one.
        library: its subjects embedded by that encoder.
        config: what is measured.
        folder: for reports and checkpoints.

    Raises:
        ConfigError: the library is smaller than the largest size.
    """
    if max(config.sizes) > len(library):
        raise ConfigError(
            f"the library must hold {max(config.sizes)} adapters, but holds {len(library)}: give "
            "smaller sizes, or collect more"
        )
    cache, reports = Cache(folder), []
    for size in sorted(config.sizes):
        identity = {
            "hypernet": config.hypernet,
            "latents": config.latents,
            "makers": [one and one.fingerprint for one in (parts.synthesizer, parts.regression)],
            "library": library.fingerprint,
            "subjects": list(run.subjects.ids),
            "size": size,
            **run.identity,
        }
        checkpoint, part = cache.path("hypernet", identity, ".safetensors"), range(size)
        measure = partial(_measure, run, parts, library.select(part), config, checkpoint)
        reports.append(cache.report(f"library of {size}", identity, measure))
    return reports


def _measure(
    run: Benchmark, parts: Parts, library: Library, config: GrowthConfig, checkpoint: Path
) -> dict[str, Any]:
    """Train a hypernetwork on a library; it and baselines, measured at strength 1."""
    whole, size = parts.whole, len(library)
    codec = fit_codec("pca", library, {"latents": min(config.latents, size - 1)})
    known = LatentLibrary.encode(library, codec, column_of(whole.encoder))
    data = TrainingSet(latents=known.latents, conditions=known.conditions)
    anchor = None if parts.regression is None else parts.regression.regression_in(codec)
    hypernet = train_hypernet(data, config.hypernet, anchor=anchor, checkpoint=checkpoint)
    made = Synthesizer.of(parts.base, library.layout, whole.encoder, hypernet, codec)
    made = replace(made, temperature=whole.temperature)
    grown = replace(parts, synthesizer=made, library=known, recipe=None)
    names = [*BASELINES, *(["direct"] if parts.regression else []), "synthesised"]
    found = contenders_of(grown, run.subjects, Cache(checkpoint.parent), names)
    rows = {one.name: run.measure(replace(one, strength=1.0)) for one in found}
    return {"size": size, "methods": {name: values.intervals() for name, values in rows.items()}}


def extrapolate(sizes: Sequence[int], similarity: Sequence[float]) -> tuple[float, float, float]:
    """Fit a - b n^-c by least squares, with c searched on a grid; at least three sizes.

    Returns:
        a, the similarity of an endless library; b; c.
    """
    n, y = np.asarray(sizes, float), np.asarray(similarity, float)
    fits = []
    for c in np.linspace(0.05, 2.0, 79):
        design = np.stack([np.ones_like(n), -(n**-c)], axis=1)
        (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
        fits.append((float(np.square(design @ (a, b) - y).sum()), float(a), float(b), float(c)))
    _, a, b, c = min(fits)
    return a, b, c


def draw_growth(reports: Sequence[dict[str, Any]]) -> Figure:
    """Similarity against size, with the fitted curve of the hypernetwork."""
    sizes, figure = [report["size"] for report in reports], COMPARED[0]
    lines = [
        Line(name, sizes, [report["methods"][name][figure] for report in reports])
        for name in reports[0]["methods"]
    ]
    if len(sizes) > 2:
        a, b, c = extrapolate(sizes, [interval["mean"] for interval in lines[-1].y])  # type: ignore[index]
        ahead = np.geomspace(min(sizes), 10 * max(sizes), 100)
        label = f"synthesised: {a:.2f} - {b:.2g} n^-{c:.2g}"
        lines.append(Line(label, ahead.tolist(), (a - b * ahead**-c).tolist(), "k--"))
    return curves({"": lines}, "adapters in the library", "identity similarity", log=True)
