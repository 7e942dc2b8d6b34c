"""Abstract and introduction: near-instant against thousands of steps; what each second buys."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from lorasynth.adapter import Factors, Layout, scaled
from lorasynth.codec import Codec
from lorasynth.collect import PRESETS, Descent, Recipe, train_fleet
from lorasynth.experiments.reproduce.finding import (
    CLAIMS,
    Finding,
    interval,
    judged,
    text,
)
from lorasynth.experiments.reproduce.study import Study, as_json
from lorasynth.optimise import (
    Coordinates,
    Decode,
    Inversion,
    InversionConfig,
    Mixture,
    MixtureConfig,
    fine_tune,
    personalise,
    weights_of,
)
from lorasynth.pictures import Subject
from lorasynth.synthesizer import Synthesizer

#: Pictures that a method learns from.
SHOWN = (1, 10)


class Bought(NamedTuple):
    """What a method makes of the test subjects, and in which time.

    Attributes:
        method: its name.
        pictures: of each subject that it sees.
        steps: of training or descent.
        found: seconds a subject, and the figures of `Measured`, subject by subject.
    """

    method: str
    pictures: int
    steps: int
    found: dict[str, Any]


@CLAIMS.register("cost")
def cost(study: Study) -> Finding:
    """Holds: zero-shot has 0.95 of the best trained LoRA's likeness in a hundredth of its time."""
    rows = [_row(one) for one in (*zero_shot(study), *optimised(study), *trained(study))]
    ours = rows[0]
    best = max((r for r in rows if r["method"] == "LoRA"), key=lambda r: r["likeness"]["mean"])
    near = ours["likeness"]["mean"] >= 0.95 * best["likeness"]["mean"]
    fast = ours["seconds"] < 0.01 * best["seconds"]
    return Finding(
        claim="Near-instant adapters are as good as those of thousands of steps; LoRA itself saves "
        "no steps over full fine-tuning",
        section="Abstract",
        verdict=judged(holds=near and fast, partly=fast),
        why=(
            f"Zero-shot takes {ours['seconds']:.3f} s a subject for a likeness of "
            f"{text(ours['likeness'])}; {best['steps']} steps of LoRA on {best['pictures']} "
            f"pictures take {best['seconds']:.1f} s for {text(best['likeness'])}."
        ),
        values={"rows": rows},
        tables={"What each second buys": [{**r, "likeness": text(r["likeness"])} for r in rows]},
        figures={"cost": _draw(rows)},
    )


def zero_shot(study: Study) -> list[Bought]:
    """The synthesizer, and the regression that it is around if there is one."""
    ours = {"zero-shot": study.bundle.synthesizer, "direct": study.bundle.pretrained}
    return [
        _measured(study, name, shown, 0, partial(_synthesised, one))
        for shown in SHOWN
        for name, one in ours.items()
        if one is not None
    ]


def optimised(study: Study) -> list[Bought]:
    """Mixtures, inversions and refining."""
    steps = study.config.optimised
    found = []
    for shown in SHOWN:
        for name, make in (("mixture", _mixture), ("inversion", _inversion), ("w2w", _like_w2w)):
            found.append(_measured(study, name, shown, steps, _optimised(study, make)))
        for count in study.config.refined:
            recipe = replace(PRESETS["refine"], steps=count)
            found.append(_measured(study, "refine", shown, count, _refined(study, recipe)))
    return found


def trained(study: Study) -> list[Bought]:
    """LoRAs from nothing and from what the regression foretells, and all weights."""
    found = []
    for count in study.config.trained:
        recipe = replace(Recipe(), targets=study.bundle.recipe.targets, steps=count)
        found.append(_measured(study, "LoRA", SHOWN[-1], count, _trained(study, recipe)))
        found.append(_fully(study, count))
    if (anchor := study.bundle.pretrained) is not None:
        recipe = study.bundle.recipe
        make = _trained(study, recipe, anchor)
        found.append(_measured(study, "LoRA, anchored", SHOWN[-1], recipe.steps, make))
    return found


def _measured(
    study: Study,
    method: str,
    shown: int,
    steps: int,
    make: Callable[[list[Subject]], Factors],
) -> Bought:
    """A method's adapters, measured."""

    def measure() -> dict[str, Any]:
        people = subjects(study, shown)
        begun = time.perf_counter()
        adapters = make(people)
        seconds = (time.perf_counter() - begun) / len(people)
        return {"seconds": seconds, **study.figures(adapters)}

    return Bought(method, shown, steps, _cell(study, method, shown, steps, measure))


def _fully(study: Study, steps: int) -> Bought:
    """Training all weights, for the first few subjects one after another."""
    few = study.config.fully_trained
    config = Descent(steps=steps, learning_rate=1e-4, clip=1.0)

    def measure() -> dict[str, Any]:
        run, base = study.trial, study.bundle.base
        spent = 0.0

        def contexts() -> Iterator[AbstractContextManager[None]]:
            nonlocal spent
            for person in subjects(study, SHOWN[-1])[:few]:
                begun = time.perf_counter()
                weights = fine_tune(base, person, config)
                spent += time.perf_counter() - begun
                yield weights_of(base, weights)

        made = run.pictures_within(contexts())
        pictures = torch.zeros_like(run.references)
        pictures[: len(made)] = made
        found = as_json(run.measure(pictures))
        return {"seconds": spent / few, **{name: values[:few] for name, values in found.items()}}

    found = _cell(study, "all weights", SHOWN[-1], steps, measure)
    return Bought("all weights", SHOWN[-1], steps, found)


def _cell(
    study: Study, method: str, shown: int, steps: int, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    facts = {
        "method": method,
        "pictures": shown,
        "steps": steps,
        "subjects": study.config.trial.subjects,
        "synthesizer": study.bundle.synthesizer.fingerprint,
    }
    found: dict[str, Any] = study.cell("cost", facts, measure)
    return found


def _row(bought: Bought) -> dict[str, Any]:
    found = bought.found
    return {
        "method": bought.method,
        "pictures": bought.pictures,
        "steps": bought.steps,
        "seconds": found["seconds"],
        "likeness": interval([found["likeness"]]),
        "second_likeness": interval([found["likeness_second"]])["mean"],
        "attributes": interval([found["attribute_accuracy"]])["mean"],
        "prompts": interval([found["prompt_following"]])["mean"],
    }


def subjects(study: Study, shown: int) -> list[Subject]:
    """The test subjects with the one picture that is the condition, or with others to train on."""
    source = study.trial.subjects
    if shown == 1:
        one = replace(source, pictures=1)
        return [one.load(name, "condition") for name in source.ids]
    several = replace(source, pictures=min(shown, source.pictures))
    return [several.load(name) for name in source.ids]


def _optimised(
    study: Study, make: Callable[[Study, int], Coordinates]
) -> Callable[[list[Subject]], Factors]:
    def run(people: list[Subject]) -> Factors:
        return personalise(study.bundle.base, people, make(study, len(people))).factors

    return run


def _refined(study: Study, recipe: Recipe) -> Callable[[list[Subject]], Factors]:
    def run(people: list[Subject]) -> Factors:
        anchor = study.synthesised(study.bundle.pretrained or study.bundle.synthesizer)
        return train_fleet(study.bundle.base, recipe, people, anchor=anchor).factors

    return run


def _trained(
    study: Study, recipe: Recipe, anchor: Synthesizer | None = None
) -> Callable[[list[Subject]], Factors]:
    def run(people: list[Subject]) -> Factors:
        start = None if anchor is None else anchor.foretell(people)
        return train_fleet(study.bundle.base, recipe, people, anchor=start).factors

    return run


def _synthesised(synthesizer: Synthesizer, people: list[Subject]) -> Factors:
    return scaled(synthesizer.foretell(people), synthesizer.strength)


def _mixture(study: Study, count: int) -> Coordinates:
    config = MixtureConfig()
    config = replace(config, descent=replace(config.descent, steps=study.config.optimised))
    synthesizer = study.bundle.synthesizer
    decode = _decoder(study, synthesizer.codec, synthesizer.layout)
    return Mixture(config, count, study.bundle.library.latents, decode)


def _inversion(study: Study, count: int) -> Coordinates:
    config = InversionConfig()
    config = replace(config, descent=replace(config.descent, steps=study.config.optimised))
    known = study.bundle.library.latents
    mean = known.mean(dim=0)
    synthesizer = study.bundle.synthesizer
    decode = _decoder(study, synthesizer.codec, synthesizer.layout)
    return Inversion(config, mean.expand(count, -1), mean, known.std(dim=0), decode)


def _like_w2w(study: Study, count: int) -> Coordinates:
    """weights2weights' inversion (4.3 there): Adam at 0.1 on coefficients, one sample a step."""
    descent = Descent(
        steps=study.config.optimised,
        learning_rate=0.1,
        pictures_per_step=1,
        noise="own",
        average=0.0,
        clip=None,
    )
    config = InversionConfig(prior=0.0, equal_steps=False, descent=descent)
    known, _ = study.vectors("ours")
    options = {"latents": min(1000, len(known) - 1), "scale": "parameter"}
    codec, layout = study.codec("pca", options), study.layout("ours")
    latents = codec.encode(known)
    mean = latents.mean(dim=0)
    decode = _decoder(study, codec, layout)
    return Inversion(config, mean.expand(count, -1), mean, latents.std(dim=0), decode)


def _decoder(study: Study, codec: Codec, layout: Layout) -> Decode:
    """Latents to stacked adapters, on the base model's device, where descent is."""
    codec = copy.deepcopy(codec).to(study.bundle.base.device)
    return lambda latents: layout.unflatten(codec.decode(latents))


def _draw(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), dpi=130)
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        for shown, mark in zip(SHOWN, "os", strict=True):
            mine = [r for r in rows if r["method"] == method and r["pictures"] == shown]
            if mine:
                seconds, means = [r["seconds"] for r in mine], [r["likeness"]["mean"] for r in mine]
                axes.plot(seconds, means, f"{mark}-", label=f"{method}, {shown} pictures")
    axes.set(xscale="log", xlabel="seconds a subject", ylabel="likeness")
    axes.legend(fontsize=6)
    figure.tight_layout()
    return figure
