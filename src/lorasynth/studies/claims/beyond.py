"""Beyond the paper: goals that neither its method nor its peers reach, each with its own rule."""

import time
from collections.abc import Mapping
from typing import Any

from lorasynth.hypernet import LatentDiffusionConfig
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.studies.claims.cost import SHOWN, Cost, optimised, similarity_of, trained, zero_shot
from lorasynth.studies.finding import (
    SECOND,
    SIMILARITY,
    Finding,
    claim,
    difference,
    flat,
    interval,
    judged,
    text,
)
from lorasynth.studies.study import Study
from lorasynth.synthesizer import Synthesizer

#: weights2weights' inversion as its authors run it, and as well as we can; in a PCA.
INVERSIONS = ("w2w", "inversion")
#: Solver steps that samplers are tried with, the most first.
STEPS = (25, 4, 2, 1)
SAMPLERS: Mapping[str, LatentDiffusionConfig] = {
    "v": LatentDiffusionConfig(),
    "flow matching": LatentDiffusionConfig(schedule="linear", parameterisation="flow"),
}


@claim(
    "beyond",
    says="Synthesis beats weights2weights' inversion in a hundredth of its time; from one image it "
    "has 0.97 of a trained adapter's identity similarity, and all of it when refined",
    section="beyond the paper",
    rule="Holds: all goals are met; partly: some of them. The best run of inversion sees as many "
    "images as ours, and has a strength too. Its goals are met if they are by both encoders, of "
    "which the second steers nothing. Trained: the best LoRA, from ten images.",
    seeded=False,
)
def beyond(study: Study) -> Finding:
    """Compare synthesis with inversion and with training."""
    fast, slow = zero_shot(study), optimised(study)
    steps = max(count for count in study.config.refined if count <= 50)
    loras = (one for one in trained(study) if one.method.startswith("LoRA"))
    ceiling = max(loras, key=similarity_of)
    ours = [_only(fast, "zero-shot", shown) for shown in SHOWN]
    refined = [_only(slow, "refine", shown, steps) for shown in SHOWN]
    inverted = [
        max((o for o in slow if o.method in INVERSIONS and o.images == shown), key=similarity_of)
        for shown in SHOWN
    ]
    one, ten = (_pair(mine, theirs) for mine, theirs in zip(ours, inverted, strict=True))
    less_shown = _pair(ours[0], inverted[1])
    beside_trained = [_pair(mine, ceiling) for mine in (*ours, *refined)]
    zero, whole = beside_trained[0], beside_trained[-1]
    share = similarity_of(ours[0]) / similarity_of(ceiling)
    goals = {
        "beats inversion from one image": _beats(one),
        "beats inversion from ten images": _beats(ten),
        "in a hundredth of its time": all(row["share_of_seconds"] < 0.01 for row in (one, ten)),
        "has 0.97 of trained": share >= 0.97,
        "refined is not below trained": whole["more"]["mean"] >= 0,
    }
    rows = [one, ten, less_shown, *beside_trained]
    return Finding(
        verdict=judged(holds=all(goals.values()), partly=any(goals.values())),
        why=(
            f"From one image {ours[0].found['seconds']:.3f} s against "
            f"{inverted[0].found['seconds']:.1f} s of inversion, and identity similarity "
            f"{text(one['more'])} more (second encoder {text(one['second_more'])}); from "
            f"ten {text(ten['more'])} more ({text(ten['second_more'])}). One image has "
            f"{share:.3f} of what {ceiling.steps} steps of {ceiling.method} give, "
            f"{text(zero['more'])} more; after {steps} steps of refining on ten images "
            f"it is {text(whole['more'])} more."
        ),
        values={"goals": goals, "rows": rows, "share": share},
        tables={"Differences in identity similarity": flat(rows)},
    )


def _only(found: list[Cost], method: str, images: int, steps: int = 0) -> Cost:
    [one] = [one for one in found if one[:3] == (method, images, steps)]
    return one


def _pair(one: Cost, other: Cost) -> dict[str, Any]:
    """How much more similarity one method has than another, and in which share of its time."""
    return {
        "method": _named(one),
        "beside": _named(other),
        "more": difference([one.found[SIMILARITY]], [other.found[SIMILARITY]]),
        "second_more": difference([one.found[SECOND]], [other.found[SECOND]]),
        "share_of_seconds": one.found["seconds"] / other.found["seconds"],
    }


def _named(one: Cost) -> str:
    trained = f", {one.steps} steps" if one.steps else ""
    return f"{one.method}{trained}; images: {one.images}"


def _beats(row: Mapping[str, Any]) -> bool:
    """Surely, by both encoders."""
    return bool(row["more"]["lo"] > 0 and row["second_more"]["lo"] > 0)


@claim(
    "few steps",
    says="Few steps of the sampler are enough",
    section="beyond the paper",
    rule="Holds: with two and four steps every sampler loses less than 0.01 of identity "
    "similarity; partly: some do.",
)
def few_steps(study: Study) -> Finding:
    """Sample with ever fewer steps, around the mean and around a regression."""
    config, regression = study.config, study.bundle.pretrained
    rows: list[dict[str, Any]] = []
    for name in SAMPLERS:
        for around in [None] if regression is None else [None, regression]:
            found = [_sampled(study, name, around, seed) for seed in config.seeds]
            most = [cell[str(STEPS[0])][SIMILARITY] for cell in found]
            for steps in STEPS:
                cells = [cell[str(steps)] for cell in found]
                similarity = [cell[SIMILARITY] for cell in cells]
                rows.append(
                    {
                        "predicts": name,
                        "around": "mean" if around is None else "regression",
                        "steps": steps,
                        "milliseconds": 1000 * min(cell["seconds"] for cell in cells),
                        "similarity": interval(similarity),
                        "lost": difference(most, similarity),
                    }
                )
    few = [row for row in rows if row["steps"] in (2, 4)]
    kept = [row for row in few if row["lost"]["mean"] < 0.01]
    best = max(rows, key=lambda row: float(row["similarity"]["mean"]))
    return Finding(
        verdict=judged(holds=len(kept) == len(few), partly=bool(kept)),
        why=(
            f"Of {len(few)} samplers with two or four steps {len(kept)} lose less than 0.01 of the "
            f"identity similarity that {STEPS[0]} steps give. The highest is "
            f"{text(best['similarity'])}: {best['predicts']}, {best['steps']} steps, around the "
            f"{best['around']}."
        ),
        values={"rows": rows},
        tables={"Samplers": flat(rows)},
    )


def _sampled(study: Study, name: str, around: Synthesizer | None, seed: int) -> dict[str, Any]:
    """One training, and what its samples are worth by the number of steps."""
    training = study.hypernet(seed, SAMPLERS[name], study.config.steps)
    facts = {
        "training": training,
        "around": None if around is None else around.fingerprint,
        "latents": study.latents,
        **study.tested,
    }
    found: dict[str, Any] = study.cell("steps", facts, lambda: _sample(study, training, around))
    return found


def _sample(study: Study, training: HypernetConfig, around: Synthesizer | None) -> dict[str, Any]:
    seed, conditions = training.optimisation.seed, study.conditions(study.test)
    codec = study.standard_codec("pca", seed)
    model = study.learned(codec, training, around=around)
    noise = model.draw_noise(seed, [case.id for case in study.test.cases])
    found = {}
    for steps in STEPS:
        begun = time.perf_counter()
        latents = model.sample(conditions, noise, steps=steps)
        seconds = (time.perf_counter() - begun) / len(noise)
        figures = study.figures(study.layout.unflatten(codec.decode(latents)))
        found[str(steps)] = {"seconds": seconds, **figures}
    return found
