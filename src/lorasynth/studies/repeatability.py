"""How much of an adapter is about its subject: train each subject twice and compare.

The two trainings of a subject see different images and draw from different streams; what all
adapters of a library share (the base model, a shared A, shared noise) they share too.  Cosines of
ΔW come from the factors' inner products, so they do not depend on the gauge.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from lorasynth.adapter import Factors, cosines, map_factors
from lorasynth.base import BaseModel
from lorasynth.collect import AdapterPredictor
from lorasynth.core.cache import Cache, plain
from lorasynth.core.errors import CollectionError
from lorasynth.core.figures import Line, curves
from lorasynth.core.progress import progress
from lorasynth.engine import Recipe, train_fleet
from lorasynth.evaluation.benchmark import Benchmark
from lorasynth.evaluation.contenders import stacked
from lorasynth.images import Subject


class Candidate(NamedTuple):
    """A recipe to try, and what training starts from; None: as the recipe says."""

    recipe: Recipe
    anchor: AdapterPredictor | None = None


def repeatability(run: Benchmark, candidate: Candidate) -> dict[str, Any]:
    """Train every subject twice, on one half of its training images each; measure the first.

    Returns:
        JSON values: cosine of the updates of the `same` and of `different` subjects, each figure
        beside that of real images, and seconds of training per adapter.

    Raises:
        CollectionError: there are fewer than two subjects, or one has a single image.
    """
    (recipe, anchor), ids = candidate, list(run.subjects.ids)
    subjects = [run.subjects.load(name) for name in ids]
    start = time.monotonic()
    first, second = train_twice(run.base, candidate, subjects)
    seconds = (time.monotonic() - start) / (2 * len(subjects))
    same, different = compare(first, second)
    return {
        "recipe": plain(recipe),
        "anchor": None if anchor is None else anchor.fingerprint,
        "config": plain(run.config),
        "same": same,
        "different": different,
        "n": len(ids),
        "seconds": seconds,
        **run.measure(stacked("trained", first, ids)).intervals(),
        "real": run.real().intervals(),
    }


def train_twice(
    base: BaseModel, candidate: Candidate, subjects: Sequence[Subject]
) -> tuple[Factors, Factors]:
    """Train each subject on one half of its images and on the other, all in one fleet.

    An anchor too sees the images of one half only.

    Raises:
        CollectionError: a subject has a single image.
    """
    (recipe, anchor), n = candidate, len(subjects)
    halves = [split_images(subject) for subject in subjects]
    trainees = [half[index] for index in range(2) for half in halves]
    init = None if anchor is None else anchor.predict(trainees)
    with progress("train twice", recipe.steps) as advance:
        fleet = train_fleet(base, recipe, trainees, init=init, on_step=lambda _, __: advance())
    first = map_factors(lambda part: part[:n], fleet.factors)
    return first, map_factors(lambda part: part[n:], fleet.factors)


def split_images(subject: Subject) -> tuple[Subject, Subject]:
    """Every second image of a subject, and the others, as two subjects with streams of their own.

    Raises:
        CollectionError: the subject has a single image.
    """
    if len(subject.photos) < 2:
        raise CollectionError(
            "a subject must have at least 2 images to be trained twice on different ones, but "
            f"{subject.id!r} has {len(subject.photos)}"
        )
    first, second = (
        replace(
            subject,
            id=f"{subject.id}/{half}",
            photos=subject.photos[half::2],
            seen={},
            captions=list(subject.captions)[half::2],
        )
        for half in range(2)
    )
    return first, second


def compare(first: Factors, second: Factors) -> tuple[float, float]:
    """Mean cosines of ΔW of two trainings of the same n ≥ 2 subjects in the same order.

    Returns:
        That of the two adapters of one subject, and that of adapters of different subjects.

    Raises:
        CollectionError: there are fewer than two subjects.
    """
    matrix = cosines(first, second)
    if len(matrix) < 2:
        raise CollectionError(
            f"repeatability needs at least two subjects, but got {len(matrix)}: give more"
        )
    other = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return float(matrix.diagonal().mean()), float(matrix[other].mean())


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
