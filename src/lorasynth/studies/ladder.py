"""The ladder: where likeness is lost between a trained adapter and a synthesised one.

Each rung replaces one more stage of the truth by what the system makes of it, on the same subjects,
prompts and noise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lorasynth.adapter import Factors
from lorasynth.avatars.bundle import Bundle
from lorasynth.core.config import to_dict
from lorasynth.core.figures import bars, save_figure
from lorasynth.evaluation.trial import COMPARED, Trial, TrialConfig
from lorasynth.hypernet import LatentDiffusion

#: sigma/alpha of the noise that is added to a trained adapter's latent.
LEVELS = (0.3, 1.0, 3.0)


def ladder(bundle: Bundle, config: TrialConfig, cache: Path) -> dict[str, Any]:
    """Measure every rung; JSON values.

    Args:
        bundle: the loaded parts.
        config: the subjects; validation ones where the ladder guides choices.
        cache: folder for trained adapters and for what was measured.
    """
    run = Trial(bundle.instruments, config, cache / "measured")
    trained = run.trained(bundle.recipe, bundle.pretrained, cache)
    measured = {"two real images": run.real()}
    for name, factors in _rungs(bundle, run, trained):
        measured[name] = run.tried(name, factors)
    return {
        "config": to_dict(config),
        "library": len(bundle.library.ids),
        "rungs": [
            {"rung": name, "n": config.subjects, **values.intervals(*COMPARED)}
            for name, values in measured.items()
        ],
    }


def _rungs(bundle: Bundle, run: Trial, trained: Factors) -> Iterator[tuple[str, Factors | None]]:
    """Names and adapters, from the trained ones down."""
    synthesizer, names = bundle.synthesizer, run.subjects.ids
    hypernet, latents = synthesizer.hypernet, bundle.encode(trained)
    yield "trained adapter", trained
    yield "in canonical form", bundle.canonical(trained)
    yield "through the codec", bundle.decode(latents)
    ten = synthesizer.conditions([run.subjects.load(name) for name in names])
    if isinstance(hypernet, LatentDiffusion):
        noise = hypernet.draw_noise(run.config.seed, names)
        for level in LEVELS:
            cleaned = hypernet.clean(latents, ten, noise, level)
            yield f"its latent, noise {level:g}, denoised", bundle.decode(cleaned)
    for title, one in (("sampled", synthesizer), ("direct", bundle.pretrained)):
        if one is not None:
            yield f"{title}, condition of ten images", one.decode(one.latents(ten, names))
            latents = one.latents(run.conditions, names)
            yield f"{title}, condition of one image", one.decode(latents)
    yield "base model", None


def draw_ladder(report: dict[str, Any], path: Path) -> None:
    """Write the ladder as a PNG: a row for each rung, a mark for each figure."""
    rungs = report["rungs"]
    figure = Figure(figsize=(7.5, 0.6 + 0.33 * len(rungs)), dpi=150)
    axes = figure.subplots()
    for offset, name in enumerate(COMPARED):
        rows = [rung[name] for rung in rungs]
        means = [row["mean"] for row in rows]
        places = [row + 0.16 * (offset - 1) for row in range(len(rungs))]
        label = name.replace("_", " ")
        spans = bars(rows)
        axes.errorbar(means, places, xerr=spans, fmt="o", markersize=4, capsize=2, label=label)
    axes.set_yticks(range(len(rungs)), [rung["rung"] for rung in rungs], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.3)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1)
    axes.legend(fontsize=7, loc="center left")
    figure.tight_layout()
    save_figure(figure, path)
