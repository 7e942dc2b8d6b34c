"""What recipes' adapters are worth: are they like their subjects, and are they repeatable?"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from lorasynth.collect import AdapterPredictor
from lorasynth.core.cache import Cache, plain
from lorasynth.core.figures import Line, curves
from lorasynth.core.progress import progress
from lorasynth.engine.recipe import Recipe
from lorasynth.evaluation.benchmark import Benchmark
from lorasynth.evaluation.contenders import stacked
from lorasynth.studies.twice import compare, train_twice


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe to try.

    Attributes:
        recipe: how each adapter is trained.
        anchor: what training starts from; None: as the recipe says.
    """

    recipe: Recipe
    anchor: AdapterPredictor | None = None


def repeatability(run: Benchmark, candidate: Candidate) -> dict[str, Any]:
    """Train every subject twice, on one half of its training images each; measure the first.

    Returns:
        JSON values: cosine of the updates of the `same` and of `different` subjects, each figure
        beside that of real images, and seconds of training per adapter.
    """
    recipe, anchor, ids = candidate.recipe, candidate.anchor, list(run.subjects.ids)
    subjects = [run.subjects.load(name) for name in ids]
    start = time.monotonic()
    with progress("train twice", recipe.steps) as advance:
        first, second = train_twice(
            run.base, recipe, subjects, anchor=anchor, on_step=lambda _, __: advance()
        )
    seconds = (time.monotonic() - start) / (2 * len(subjects))
    cosines = compare(first, second)
    return {
        "recipe": plain(recipe),
        "anchor": None if anchor is None else anchor.fingerprint,
        "config": plain(run.config),
        "same": cosines.same,
        "different": cosines.different,
        "n": len(ids),
        "seconds": seconds,
        **run.measure(stacked("trained", first, ids)).intervals(),
        "real": run.real().intervals(),
    }


def compare_recipes(
    run: Benchmark, candidates: Mapping[str, Candidate], cache: Cache
) -> dict[str, dict[str, Any]]:
    """Measure every candidate; name -> report.  One that was measured before is not again."""
    reports = {}
    for name, one in candidates.items():
        identity = {
            "recipe": one.recipe,
            "anchor": None if one.anchor is None else one.anchor.fingerprint,
            "images": run.subjects.key,
            **run.identity,
        }
        reports[name] = cache.report(f"recipe {name}", identity, partial(repeatability, run, one))
    return reports


def draw_recipes(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Identity similarity against repeatability; squares start from a synthesizer's prediction."""
    lines = [
        Line(name, [row["same"]], [row["identity_similarity"]], "s" if row["anchor"] else "o")
        for name, row in reports.items()
    ]
    *_, last = reports.values()
    real = last["real"]["identity_similarity"]["mean"]
    lines.append(Line("two real images", [0.0, 1.0], [real, real], "--"))
    return curves(
        {"": lines}, "repeatability: cosine of ΔW, one subject trained twice", "identity similarity"
    )
