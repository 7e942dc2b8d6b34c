"""Beyond the paper: goals that neither its method nor its peers reach, each with its own rule."""

from collections.abc import Mapping
from typing import Any

from lorasynth.studies.claims.cost import SHOWN, Cost, optimised, similarity_of, trained, zero_shot
from lorasynth.studies.finding import (
    SECOND,
    SIMILARITY,
    Finding,
    claim,
    difference,
    judged,
)
from lorasynth.studies.study import Study

#: weights2weights' inversion as its authors run it, and as well as we can; in a PCA.
INVERSIONS = ("w2w", "inversion")


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
    whole = beside_trained[-1]
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
        why={
            "goals": goals,
            "more than inversion from one image": one["more"],
            "from ten": ten["more"],
            "share of what the best LoRA has": share,
            "refined, more than it": whole["more"],
        },
        tables={"Differences in identity similarity": rows},
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
