"""Beyond the paper: goals that neither its method nor its peers reach, each with its own rule."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lorasynth.config import to_dict
from lorasynth.experiments.reproduce.cost import (
    SHOWN,
    Bought,
    likeness_of,
    optimised,
    trained,
    zero_shot,
)
from lorasynth.experiments.reproduce.finding import (
    CLAIMS,
    Finding,
    difference,
    flat,
    interval,
    judged,
    text,
)
from lorasynth.experiments.reproduce.study import Study
from lorasynth.hypernet import LatentDiffusionConfig
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.synthesizer import Synthesizer

#: weights2weights' inversion as its authors run it, and as well as we can; in a PCA.
INVERSIONS = ("w2w", "inversion")
#: Solver steps that samplers are tried with, the most first.
STEPS = (25, 4, 2, 1)
SAMPLERS: Mapping[str, LatentDiffusionConfig] = {
    "v": LatentDiffusionConfig(),
    "flow matching": LatentDiffusionConfig(schedule="linear", parameterisation="flow"),
}


@CLAIMS.register("beyond")
def beyond(study: Study) -> Finding:
    """Holds: all goals are met; partly: some of them."""
    one_picture, ten_pictures = SHOWN
    ours = _only(zero_shot(study), "zero-shot", one_picture)
    slow = optimised(study)
    w2w = max((one for one in slow if one.method in INVERSIONS), key=likeness_of)
    steps = max(count for count in study.config.refined if count <= 50)
    refined = [_only(slow, "refine", shown, steps) for shown in SHOWN]
    ceiling = max((one for one in trained(study) if one.method.startswith("LoRA")), key=likeness_of)
    pairs = {
        "zero-shot less w2w": (ours, w2w),
        "zero-shot less trained": (ours, ceiling),
        f"refined with {one_picture} picture less trained": (refined[0], ceiling),
        f"refined with {ten_pictures} pictures less trained": (refined[1], ceiling),
    }
    less, second = (
        {
            name: difference([one.found[figure]], [other.found[figure]])
            for name, (one, other) in pairs.items()
        }
        for figure in ("likeness", "likeness_second")
    )
    refining = less[f"refined with {ten_pictures} pictures less trained"]
    share = likeness_of(ours) / likeness_of(ceiling)
    goals = {
        "beats w2w": less["zero-shot less w2w"]["lo"] > 0,
        "beats w2w by the second encoder": second["zero-shot less w2w"]["lo"] > 0,
        "in a hundredth of its time": ours.found["seconds"] < 0.01 * w2w.found["seconds"],
        "has 0.97 of trained": share >= 0.97,
        "refined is not below trained": refining["mean"] >= 0,
    }
    return Finding(
        claim="One picture beats weights2weights' inversion in a hundredth of its time, has 0.97 "
        "of a trained adapter's likeness, and all of it when refined",
        section="beyond the paper",
        verdict=judged(holds=all(goals.values()), partly=any(goals.values())),
        why=(
            f"{ours.found['seconds']:.3f} s against {w2w.found['seconds']:.1f} s of inversion on "
            f"{w2w.pictures} pictures, likeness {text(less['zero-shot less w2w'])} more; "
            f"{share:.3f} of what {ceiling.steps} steps of {ceiling.method} give; after {steps} "
            f"steps of refining on {ten_pictures} pictures {text(refining)} more than these. By "
            f"the second encoder, which steers nothing, zero-shot has "
            f"{text(second['zero-shot less w2w'])} more than inversion."
        ),
        values={"goals": goals, "differences": less, "by_second": second, "share": share},
        tables={
            "Differences in likeness": [
                {"pair": name, "first encoder": text(less[name]), "second": text(second[name])}
                for name in pairs
            ]
        },
    )


@CLAIMS.register("few steps")
def few_steps(study: Study) -> Finding:
    """Holds: with two and four steps every sampler loses less than 0.01 of likeness."""
    anchors = [None] if study.bundle.pretrained is None else [None, study.bundle.pretrained]
    rows: list[dict[str, Any]] = []
    for name in SAMPLERS:
        for anchor in anchors:
            found = [_sampled(study, name, anchor, seed) for seed in study.config.seeds]
            rows += _rows(name, anchor is not None, found)
    few = [row for row in rows if row["steps"] in (2, 4)]
    kept = [row for row in few if row["lost"]["mean"] < 0.01]
    best = max(rows, key=lambda row: float(row["likeness"]["mean"]))
    return Finding(
        claim="Few steps of the sampler are enough",
        section="beyond the paper",
        verdict=judged(holds=len(kept) == len(few), partly=bool(kept)),
        why=(
            f"Of {len(few)} samplers with two or four steps {len(kept)} lose less than 0.01 of the "
            f"likeness that {STEPS[0]} steps give. The highest is {text(best['likeness'])}: "
            f"{best['predicts']}, {best['steps']} steps, around the {best['around']}."
        ),
        values={"rows": rows},
        seeds=study.config.seeds,
        tables={"Samplers": [flat(row) for row in rows]},
    )


def _only(found: list[Bought], method: str, pictures: int, steps: int = 0) -> Bought:
    [one] = [one for one in found if one[:3] == (method, pictures, steps)]
    return one


def _rows(name: str, anchored: bool, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sampler, with each number of steps."""
    most = [cell[str(STEPS[0])]["likeness"] for cell in found]
    rows = []
    for steps in STEPS:
        likeness = [cell[str(steps)]["likeness"] for cell in found]
        rows.append(
            {
                "predicts": name,
                "around": "regression" if anchored else "mean",
                "steps": steps,
                "milliseconds": 1000 * min(cell[str(steps)]["seconds"] for cell in found),
                "likeness": interval(likeness),
                "lost": difference(most, likeness),
            }
        )
    return rows


def _sampled(study: Study, name: str, anchor: Synthesizer | None, seed: int) -> dict[str, Any]:
    """One training, and what its samples are worth by the number of steps."""
    config = study.config
    training = replace(
        config.hypernet,
        model=SAMPLERS[name],
        optimisation=replace(config.hypernet.optimisation, seed=seed),
    )
    facts = {
        "training": to_dict(training),
        "anchor": None if anchor is None else anchor.fingerprint,
        "latents": study.latents,
        **study.tried,
    }
    measure = partial(_train_and_sample, study, training, anchor)
    found: dict[str, Any] = study.cell("steps", facts, measure)
    return found


def _train_and_sample(
    study: Study, training: HypernetConfig, anchor: Synthesizer | None
) -> dict[str, Any]:
    run, layout = study.trial, study.layout
    codec = study.standard_codec("pca", training.optimisation.seed)
    model = study.learned(codec, training, anchor=anchor)
    noise = model.draw_noise(training.optimisation.seed, run.subjects.ids)
    found = {}
    for steps in STEPS:
        begun = time.perf_counter()
        latents = model.sample(run.conditions, noise, steps=steps)
        seconds = (time.perf_counter() - begun) / len(noise)
        figures = study.figures(layout.unflatten(codec.decode(latents)))
        found[str(steps)] = {"seconds": seconds, **figures}
    return found
