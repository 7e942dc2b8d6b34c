"""Beyond the paper: goals that neither its method nor its peers reach, each with its own rule."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lorasynth.core.config import to_dict
from lorasynth.hypernet import LatentDiffusionConfig
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.studies.reproduce.cost import (
    SHOWN,
    Bought,
    likeness_of,
    optimised,
    trained,
    zero_shot,
)
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
    """Holds: all goals are met; partly: some of them.

    The best run of inversion sees as many images as ours, and has a strength too.  Its goals are
    met if they are by both encoders, of which the second steers nothing.  Trained: the best LoRA,
    from ten images.
    """
    fast, slow = zero_shot(study), optimised(study)
    steps = max(count for count in study.config.refined if count <= 50)
    ceiling = max((one for one in trained(study) if one.method.startswith("LoRA")), key=likeness_of)
    ours = [_only(fast, "zero-shot", shown) for shown in SHOWN]
    refined = [_only(slow, "refine", shown, steps) for shown in SHOWN]
    inverted = [
        max((o for o in slow if o.method in INVERSIONS and o.images == shown), key=likeness_of)
        for shown in SHOWN
    ]
    one, ten = (_pair(mine, theirs) for mine, theirs in zip(ours, inverted, strict=True))
    less_shown = _pair(ours[0], inverted[1])
    beside_trained = [_pair(mine, ceiling) for mine in (*ours, *refined)]
    zero, all_of_it = beside_trained[0], beside_trained[-1]
    rows = [one, ten, less_shown, *beside_trained]
    share = likeness_of(ours[0]) / likeness_of(ceiling)
    goals = {
        "beats inversion from one image": _beats(one),
        "beats inversion from ten images": _beats(ten),
        "in a hundredth of its time": all(row["share_of_seconds"] < 0.01 for row in (one, ten)),
        "has 0.97 of trained": share >= 0.97,
        "refined is not below trained": all_of_it["likeness_more"]["mean"] >= 0,
    }
    return Finding(
        claim="Synthesis beats weights2weights' inversion in a hundredth of its time; from one "
        "image it has 0.97 of a trained adapter's likeness, and all of it when refined",
        section="beyond the paper",
        verdict=judged(holds=all(goals.values()), partly=any(goals.values())),
        why=(
            f"From one image {ours[0].found['seconds']:.3f} s against "
            f"{inverted[0].found['seconds']:.1f} s of inversion, and likeness "
            f"{text(one['likeness_more'])} more (second encoder {text(one['second_more'])}); from "
            f"ten {text(ten['likeness_more'])} more ({text(ten['second_more'])}). One image has "
            f"{share:.3f} of what {ceiling.steps} steps of {ceiling.method} give, "
            f"{text(zero['likeness_more'])} more; after {steps} steps of refining on ten images "
            f"it is {text(all_of_it['likeness_more'])} more."
        ),
        values={"goals": goals, "rows": rows, "share": share},
        tables={"Differences in likeness": [flat(row) for row in rows]},
    )


def _pair(one: Bought, other: Bought) -> dict[str, Any]:
    """How much more likeness one method has than another, and in which share of its time."""

    def more(figure: str) -> dict[str, float]:
        return difference([one.found[figure]], [other.found[figure]])

    return {
        "method": _named(one),
        "beside": _named(other),
        "likeness_more": more("likeness"),
        "second_more": more("likeness_second"),
        "share_of_seconds": one.found["seconds"] / other.found["seconds"],
    }


def _named(one: Bought) -> str:
    trained = f", {one.steps} steps" if one.steps else ""
    return f"{one.method}{trained}; images: {one.images}"


def _beats(row: Mapping[str, Any]) -> bool:
    """Surely, by both encoders."""
    return bool(row["likeness_more"]["lo"] > 0 and row["second_more"]["lo"] > 0)


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


def _only(found: list[Bought], method: str, images: int, steps: int = 0) -> Bought:
    [one] = [one for one in found if one[:3] == (method, images, steps)]
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
