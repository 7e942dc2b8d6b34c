"""Where identity similarity is lost between a trained adapter and a synthesised one.

Each stage replaces one more part of the truth by what the system makes of it, on the same
subjects, prompts and noise.
"""

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from lorasynth.adapter import Factors
from lorasynth.core.cache import Cache, plain
from lorasynth.core.errors import ConfigError
from lorasynth.core.figures import Line, curves
from lorasynth.evaluation.benchmark import Benchmark, Contender
from lorasynth.evaluation.contenders import Parts, stacked, trained
from lorasynth.evaluation.report import COMPARED
from lorasynth.hypernet import LatentDiffusion

#: sigma/alpha of the noise that is added to a trained adapter's latent.
LEVELS = (0.3, 1.0, 3.0)


def ablation(run: Benchmark, parts: Parts, cache: Cache) -> dict[str, Any]:
    """Measure every stage; JSON values.

    Args:
        run: the subjects; validation ones where this guides choices.
        parts: a synthesizer with its library and recipe.
        cache: keeps trained adapters.

    Raises:
        ConfigError: a part is missing.
    """
    if parts.library is None or parts.recipe is None:
        raise ConfigError("an ablation needs --synthesizer, --library and --recipe")
    make = trained(parts.base, run.subjects, parts.recipe, parts.regression, cache)
    ids, measured = [case.id for case in run.cases], {"two real images": run.real()}
    for name, factors in _stages(parts, run, make(run.cases)):
        measured[name] = run.measure(stacked(name, factors, ids))
    measured["base model"] = run.measure(Contender(name="base model"))
    return {
        "config": plain(run.config),
        "library": len(parts.library.ids),
        "rows": [
            {"method": name, "n": len(ids), **values.intervals()}
            for name, values in measured.items()
        ],
    }


def _stages(parts: Parts, run: Benchmark, true: Factors) -> Iterator[tuple[str, Factors]]:
    """Names and adapters, from the trained ones down."""
    synthesizer = parts.whole
    ids, hypernet, latents = list(run.subjects.ids), synthesizer.hypernet, parts.encode(true)
    yield "trained adapter", true
    yield "in canonical form", parts.canonical(true)
    yield "through the codec", synthesizer.decode(latents)
    several = synthesizer.conditions([run.subjects.load(name) for name in ids])
    one = synthesizer.conditions([case.reference for case in run.cases])
    if isinstance(hypernet, LatentDiffusion):
        noise = hypernet.draw_noise(run.config.seed, ids)
        for level in LEVELS:
            cleaned = hypernet.clean(latents, several, noise, level)
            yield f"its latent, noise {level:g}, denoised", synthesizer.decode(cleaned)
    for title, made in (("sampled", synthesizer), ("direct", parts.regression)):
        if made is not None:
            yield f"{title}, from the training images", made.decode(made.latents(several, ids))
            yield f"{title}, from the reference", made.decode(made.latents(one, ids))


def draw_ablation(report: dict[str, Any]) -> Figure:
    """A line for each figure over the stages."""
    rows = report["rows"]
    lines = [
        Line(name.replace("_", " "), range(len(rows)), [row[name] for row in rows], "o")
        for name in COMPARED
        if name in rows[0]
    ]
    return curves({"": lines}, "", ticks=[row["method"] for row in rows])
