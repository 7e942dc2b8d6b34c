"""Abstract and introduction: near-instant against thousands of steps; what each second buys."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.adapter import Factors, Layout, scaled
from lorasynth.codec import Codec
from lorasynth.core.config import to_dict
from lorasynth.engine import PRESETS, OptimizerConfig, Recipe, descend, train_fleet
from lorasynth.evaluation.bootstrap import bootstrap_ratio
from lorasynth.evaluation.trial import Trial
from lorasynth.images import Subject
from lorasynth.optimise import (
    Coordinates,
    Decode,
    Inversion,
    InversionConfig,
    Mixture,
    MixtureConfig,
    fine_tune,
    weights2weights,
    weights_of,
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
from lorasynth.studies.reproduce.study import Study, as_json, synthesised

#: Images that a method learns from.
SHOWN = (1, 10)


class Bought(NamedTuple):
    """What a method makes of the test subjects, and in which time.

    Attributes:
        method: its name.
        images: of each subject that it sees.
        steps: of training or descent.
        found: seconds a subject, and the figures of `Measured`, subject by subject.
    """

    method: str
    images: int
    steps: int
    found: dict[str, Any]


#: Makes adapters of subjects; what it needs beforehand is made before it is timed.
Make = Callable[[list[Subject]], Factors]


@CLAIMS.register("cost")
def cost(study: Study) -> Finding:
    """Holds: zero-shot has what trained LoRAs have in a hundredth of the time; LoRA saves no steps.

    Has: the interval of its share of the best LoRA's likeness lies above 0.9.  Saves no steps: with
    no number of steps is a LoRA surely more like than all weights, trained as long at the rate that
    suits validation subjects best.  Mixtures and inversions have a strength that suits validation
    subjects, as the synthesizer has; weights2weights as it is run, and what is trained, have 1.
    """
    bought = [*zero_shot(study), *optimised(study), *trained(study)]
    rows = [_row(one) for one in bought]
    loras = [one for one in bought if one.method == "LoRA"]
    ours, best = bought[0], max(loras, key=likeness_of)
    had, all_of_it = (torch.tensor(one.found["likeness"]) for one in (ours, best))
    share = asdict(bootstrap_ratio(had, all_of_it))
    saved = {one.steps: _more_than_all_weights(one, bought) for one in loras}
    near, fast = share["lo"] > 0.9, ours.found["seconds"] < 0.01 * best.found["seconds"]
    saves = [steps for steps, more in saved.items() if more["lo"] > 0]
    return Finding(
        claim="Near-instant adapters are as good as those of thousands of steps; LoRA itself saves "
        "no steps over full fine-tuning",
        section="Abstract",
        verdict=judged(holds=near and fast and not saves, partly=(near and fast) or not saves),
        why=(
            f"Zero-shot takes {ours.found['seconds']:.3f} s a subject and has {text(share)} of the "
            f"likeness of {best.steps} steps of LoRA on {best.images} images, which take "
            f"{best.found['seconds']:.1f} s. With as many steps LoRA is more like than all weights "
            f"by {', '.join(f'{text(more)} ({steps})' for steps, more in saved.items())}, on "
            f"{study.config.fully_trained} subjects."
        ),
        values={"rows": rows, "share_of_best": share, "lora_less_all_weights": saved},
        tables={"What each second buys": [flat(row) for row in rows]},
        figures={"cost": _draw(rows)},
    )


def likeness_of(one: Bought) -> float:
    """Mean over subjects."""
    return interval([one.found["likeness"]])["mean"]


def _more_than_all_weights(lora: Bought, bought: Sequence[Bought]) -> dict[str, float]:
    """How much more like LoRAs are than all weights after as many steps."""
    [full] = [one for one in bought if one.method == "all weights" and one.steps == lora.steps]
    theirs = full.found["likeness"]
    return difference([lora.found["likeness"][: len(theirs)]], [theirs])


def zero_shot(study: Study) -> list[Bought]:
    """The synthesizer, and the regression that it is around if there is one."""
    ours = {"zero-shot": study.bundle.synthesizer, "direct": study.bundle.pretrained}
    return [
        _measured(study, name, shown, 0, {}, _ready(partial(synthesised, one)))
        for shown in SHOWN
        for name, one in ours.items()
        if one is not None
    ]


def optimised(study: Study) -> list[Bought]:
    """Mixtures, inversions and refining."""
    strength = study.config.strength
    mixed = {"way": to_dict(MixtureConfig()), "strength": strength}
    inverted = {"way": to_dict(InversionConfig()), "strength": strength}
    in_vae = {**inverted, "vae": study.codec_options("vae", study.config.seeds[0])}
    ways: dict[str, tuple[dict[str, Any], Callable[[Study, int], Coordinates]]] = {
        "mixture": (mixed, _mixture),
        "inversion": (inverted, _inversion),
        "inversion, VAE": (in_vae, _in_vae),
        "w2w": ({"way": to_dict(weights2weights.SETTINGS)}, _as_w2w),
    }
    steps, found = study.config.optimised, []
    for shown in SHOWN:
        for name, (facts, coordinates) in ways.items():
            make = _optimised(study, coordinates, facts.get("strength", 1.0))
            found.append(_measured(study, name, shown, steps, facts, make))
        for count in study.config.refined:
            recipe = replace(PRESETS["refine"], steps=count)
            start = partial(synthesised, study.bundle.pretrained or study.bundle.synthesizer)
            found.append(_trained(study, "refine", shown, recipe, start))
    return found


def trained(study: Study) -> list[Bought]:
    """LoRAs from nothing and from what the regression predicts, and all weights."""
    found = []
    for count in study.config.trained:
        recipe = replace(Recipe(), targets=study.bundle.recipe.targets, steps=count)
        found.append(_trained(study, "LoRA", SHOWN[-1], recipe))
        found.append(_fully(study, count))
    if (anchor := study.bundle.pretrained) is not None:
        recipe = study.bundle.recipe
        found.append(_trained(study, "LoRA, anchored", SHOWN[-1], recipe, anchor.predict))
    return found


def _ready(make: Make) -> Callable[[int], Make]:
    """What needs nothing beforehand."""
    return lambda _: make


def _measured(
    study: Study,
    method: str,
    shown: int,
    steps: int,
    facts: Mapping[str, Any],
    prepare: Callable[[int], Make],
) -> Bought:
    """A method's adapters, measured.

    Args:
        study: whose test subjects.
        method: its name.
        shown: images of each subject.
        steps: of training or descent.
        facts: JSON values that decide what it makes.
        prepare: from the number of subjects to what is timed.
    """

    def measure() -> dict[str, Any]:
        people = study.trial.people(shown)
        make = prepare(len(people))
        begun = time.perf_counter()
        adapters = make(people)
        seconds = (time.perf_counter() - begun) / len(people)
        return {"seconds": seconds, **study.figures(adapters)}

    return _bought(study, method, shown, steps, facts, measure)


def _fully(study: Study, steps: int) -> Bought:
    """Training all weights, for the first few subjects one after another."""
    few = study.config.fully_trained

    def measure() -> dict[str, Any]:
        people = study.trial.people(SHOWN[-1])[:few]
        return _fine_tuned(study, study.trial, people, steps, _full_rate(study))

    facts = {"subjects": few, "rates": study.config.full_rates}
    return _bought(study, "all weights", SHOWN[-1], steps, facts, measure)


def _full_rate(study: Study) -> float:
    """The rate at which training all weights suits validation subjects best."""
    run, few = study.curve, study.config.fully_trained
    people = [run.subjects.load(name) for name in run.subjects.ids[:few]]
    steps = sorted(study.config.trained)[len(study.config.trained) // 2]
    facts = {"steps": steps, "subjects": few, "curve": to_dict(study.config.curve)}

    def likeness(rate: float) -> float:
        def measure() -> dict[str, Any]:
            return _fine_tuned(study, run, people, steps, rate)

        found = study.cell("rate of all weights", {"rate": rate, **facts}, measure)
        return interval([found["likeness"]])["mean"]

    return max(study.config.full_rates, key=likeness)


def _fine_tuned(
    study: Study, run: Trial, people: list[Subject], steps: int, rate: float
) -> dict[str, Any]:
    """What a trial's first subjects are like with all weights trained on them."""
    base, spent = study.bundle.base, 0.0
    config = OptimizerConfig(steps=steps, learning_rate=rate, average=0.0)

    def contexts() -> Iterator[AbstractContextManager[None]]:
        nonlocal spent
        for person in people:
            begun = time.perf_counter()
            weights = fine_tune(base, person, config)
            spent += time.perf_counter() - begun
            yield weights_of(base, weights)

    made = run.images_within(contexts())
    images = torch.zeros_like(run.references)
    images[: len(made)] = made
    found = {name: values[: len(people)] for name, values in as_json(run.measure(images)).items()}
    return {"seconds": spent / len(people), "rate": rate, **found}


def _bought(
    study: Study,
    method: str,
    shown: int,
    steps: int,
    facts: Mapping[str, Any],
    measure: Callable[[], dict[str, Any]],
) -> Bought:
    """What is measured of a method, or was in an earlier run."""
    asked = {"method": method, "images": shown, "steps": steps, **facts, **study.tried}
    return Bought(method, shown, steps, study.cell("cost", asked, measure))


def _row(bought: Bought) -> dict[str, Any]:
    found = bought.found
    return {
        "method": bought.method,
        "images": bought.images,
        "steps": bought.steps,
        "subjects": len(found["likeness"]),
        "seconds": found["seconds"],
        "likeness": interval([found["likeness"]]),
        "second_likeness": interval([found["likeness_second"]]),
        "attributes": interval([found["attribute_accuracy"]]),
        "prompts": interval([found["prompt_following"]]),
    }


def _optimised(
    study: Study, make: Callable[[Study, int], Coordinates], strength: float
) -> Callable[[int], Make]:
    def prepare(count: int) -> Make:
        coordinates, base = make(study, count), study.bundle.base
        return lambda people: scaled(descend(base, people, coordinates).factors, strength)

    return prepare


def _trained(
    study: Study, method: str, shown: int, recipe: Recipe, start: Make | None = None
) -> Bought:
    """Training from nothing, or from adapters that another method makes."""

    def run(people: list[Subject]) -> Factors:
        anchor = None if start is None else start(people)
        return train_fleet(study.bundle.base, recipe, people, init=anchor).factors

    return _measured(
        study, method, shown, recipe.steps, {"recipe": recipe.fingerprint}, _ready(run)
    )


def _mixture(study: Study, count: int) -> Coordinates:
    config = MixtureConfig()
    config = replace(config, optimizer=replace(config.optimizer, steps=study.config.optimised))
    synthesizer = study.bundle.synthesizer
    decode = _decoder(study, synthesizer.codec, synthesizer.layout)
    return Mixture(config, count, study.bundle.library.latents, decode)


def _inversion(study: Study, count: int) -> Coordinates:
    """In the synthesizer's codec."""
    synthesizer = study.bundle.synthesizer
    decode = _decoder(study, synthesizer.codec, synthesizer.layout)
    return _inverted(study, InversionConfig(), count, study.bundle.library.latents, decode)


def _in_vae(study: Study, count: int) -> Coordinates:
    """Through the decoder of a VAE (the paper's second approach)."""
    known, _ = study.vectors
    codec = study.standard_codec("vae", study.config.seeds[0])
    decode = _decoder(study, codec, study.layout)
    return _inverted(study, InversionConfig(), count, codec.encode(known), decode)


def _as_w2w(study: Study, count: int) -> Coordinates:
    """weights2weights' own."""
    known, _ = study.vectors
    codec = weights2weights.components_of(known, study.bundle.base.device).cpu()
    config = weights2weights.in_latents(weights2weights.SETTINGS, codec)
    decode = _decoder(study, codec, study.layout)
    return _inverted(study, config, count, codec.encode(known), decode)


def _inverted(
    study: Study,
    config: InversionConfig,
    count: int,
    known: Float[Tensor, "N k"],
    decode: Decode,
) -> Inversion:
    """From the mean of known latents, under their spread."""
    config = replace(config, optimizer=replace(config.optimizer, steps=study.config.optimised))
    return Inversion(config, count, known, decode)


def _decoder(study: Study, codec: Codec, layout: Layout) -> Decode:
    """Latents to stacked adapters, on the base model's device, where descent is."""
    codec = copy.deepcopy(codec).to(study.bundle.base.device)
    return lambda latents: layout.unflatten(codec.decode(latents))


def _draw(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        for shown, line in zip(SHOWN, ("o:", "s-"), strict=True):
            mine = [r for r in rows if r["method"] == method and r["images"] == shown]
            if mine:
                seconds, means = [r["seconds"] for r in mine], [r["likeness"]["mean"] for r in mine]
                axes.plot(seconds, means, line, color=f"C{i}", label=f"{method} ({shown})")
    axes.set(xscale="log", xlabel="seconds a subject", ylabel="likeness")
    figure.legend(loc="outside right center", title="method (images seen)", fontsize=7)
    return figure
