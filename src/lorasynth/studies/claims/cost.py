"""Abstract and introduction: what each second buys; adapter methods beside ours."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lorasynth.adapter import Factors, scaled
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.core.figures import Line, curves
from lorasynth.engine import OptimizerConfig, descend
from lorasynth.engine.fleet import train_fleet
from lorasynth.engine.recipe import PRESETS, Recipe
from lorasynth.engine.trainer import Optimisation
from lorasynth.evaluation.benchmark import Benchmark, Contender
from lorasynth.evaluation.bootstrap import bootstrap_ratio
from lorasynth.images import Subject
from lorasynth.optimise import (
    Coordinates,
    Inversion,
    InversionConfig,
    Mixture,
    MixtureConfig,
    fine_tune,
    weights2weights,
    weights_of,
)
from lorasynth.predict import PredictorTraining, train_predictor
from lorasynth.studies.finding import (
    SECOND,
    SIMILARITY,
    Finding,
    claim,
    difference,
    interval,
    judged,
)
from lorasynth.studies.ip_adapter import IPAdapterConfig, train_ip_adapter
from lorasynth.studies.study import Study, as_json, synthesised
from lorasynth.synthesizer import Synthesizer

#: Images that a method learns from.
SHOWN = (1, 10)
#: From subjects to what is timed, which makes their adapters.
Prepare: TypeAlias = Callable[[list[Subject]], Callable[[], Factors]]
#: Figures, subject by subject.
Values: TypeAlias = dict[str, Any]


class Cost(NamedTuple):
    """What a method makes of the test subjects, and in which time.

    Attributes:
        method: its name.
        images: of each subject that it sees.
        steps: of training or descent.
        found: seconds a subject, and the figures, subject by subject.
    """

    method: str
    images: int
    steps: int
    found: Values


@claim(
    "cost",
    says="Near-instant adapters are as good as those of thousands of steps; LoRA itself saves no "
    "steps over full fine-tuning",
    section="Abstract",
    rule="Holds: zero-shot has what trained LoRAs have in a hundredth of the time, and LoRA saves "
    "no steps; partly: one of them. Has: the interval of its share of the best LoRA's identity "
    "similarity lies above 0.9. Saves no steps: with no number of steps has a LoRA surely more "
    "than all weights, trained as long at the rate that suits validation subjects best. Mixtures "
    "and inversions have a strength that suits validation subjects, as the synthesizer has; "
    "weights2weights as it is run, and what is trained, have 1.",
    seeded=False,
)
def cost(study: Study) -> Finding:
    """Measure all methods, each with its seconds."""
    found = [*zero_shot(study), *optimised(study), *trained(study)]
    rows = [_row(one) for one in found]
    loras = [one for one in found if one.method == "LoRA"]
    ours, best = found[0], max(loras, key=similarity_of)
    had, whole = (torch.tensor(one.found[SIMILARITY]) for one in (ours, best))
    share = asdict(bootstrap_ratio(had, whole))
    full = {one.steps: one.found[SIMILARITY] for one in found if one.method == "all weights"}
    saved = {
        one.steps: difference([one.found[SIMILARITY][: len(full[one.steps])]], [full[one.steps]])
        for one in loras
    }
    near, fast = share["lo"] > 0.9, ours.found["seconds"] < 0.01 * best.found["seconds"]
    saves = any(more["lo"] > 0 for more in saved.values())
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(f"{row['method']} ({row['images']})", []).append(row)
    panel = [
        Line(name, [r["seconds"] for r in mine], [r["similarity"]["mean"] for r in mine])
        for name, mine in lines.items()
    ]
    drawn = curves({"method (images seen)": panel}, "seconds", "identity similarity", log=True)
    return Finding(
        verdict=judged(holds=near and fast and not saves, partly=(near and fast) or not saves),
        why={
            "seconds of a subject": {
                name: one.found["seconds"]
                for name, one in (("zero-shot", ours), (f"LoRA, {best.steps} steps", best))
            },
            "share of its identity similarity": share,
            "LoRA less all weights, by steps": saved,
        },
        tables={"What each second buys": rows},
        figures={"cost": drawn},
    )


def similarity_of(one: Cost) -> float:
    """Mean over subjects."""
    return interval([one.found[SIMILARITY]])["mean"]


def _row(one: Cost) -> dict[str, Any]:
    columns = {
        "similarity": SIMILARITY,
        "second_similarity": SECOND,
        "attributes": "attribute_accuracy",
        "prompts": "prompt_following",
    }
    return {
        "method": one.method,
        "images": one.images,
        "steps": one.steps,
        "subjects": len(one.found[SIMILARITY]),
        "seconds": one.found["seconds"],
        **{name: interval([one.found[figure]]) for name, figure in columns.items()},
    }


def _timed(
    study: Study, method: str, shown: int, steps: int, decides: Any, prepare: Prepare
) -> Cost:
    """A method's adapters, with the seconds that they took.

    Args:
        study: whose test subjects.
        method: its name.
        shown: images of each subject.
        steps: of training or descent.
        decides: all else that decides what it makes.
        prepare: what it needs beforehand is made before it is timed.
    """

    def measure() -> Values:
        people = study.people(study.test, shown)
        make = prepare(people)
        begun = time.perf_counter()
        adapters = make()
        seconds = (time.perf_counter() - begun) / len(people)
        return {"seconds": seconds, **study.figures(adapters)}

    facts = {"method": method, "images": shown, "steps": steps, "by": decides, **study.tested}
    return Cost(method, shown, steps, study.cell("cost", facts, measure))


def zero_shot(study: Study) -> list[Cost]:
    """The synthesizer, and the regression that it is around if there is one."""
    ours = {"zero-shot": study.bundle.synthesizer, "direct": study.bundle.pretrained}
    return [
        _timed(study, name, shown, 0, None, partial(partial, synthesised, one))
        for shown in SHOWN
        for name, one in ours.items()
        if one is not None
    ]


def optimised(study: Study) -> list[Cost]:
    """Mixtures, inversions and refining."""
    config, found = study.config, []
    start = study.bundle.pretrained or study.bundle.synthesizer
    vae = study.codec_options("vae", config.seeds[0])
    ways = {
        "mixture": [MixtureConfig(), config.strength],
        "inversion": [InversionConfig(), config.strength],
        "inversion, VAE": [InversionConfig(), vae, config.strength],
        "w2w": [weights2weights.SETTINGS],
    }
    for shown in SHOWN:
        for name, decides in ways.items():
            prepare = partial(_descended, study, name)
            found.append(_timed(study, name, shown, config.optimised, decides, prepare))
        for count in config.refined:
            recipe = replace(PRESETS["refine"], steps=count)
            refine = partial(partial, _fleet, study, recipe, partial(synthesised, start))
            found.append(_timed(study, "refine", shown, count, recipe.fingerprint, refine))
    return found


def _fleet(
    study: Study,
    recipe: Recipe,
    start: Callable[[list[Subject]], Factors] | None,
    people: list[Subject],
) -> Factors:
    """Adapters trained from what another method makes, or from nothing."""
    init = None if start is None else start(people)
    return train_fleet(study.bundle.base, recipe, people, init=init).factors


def _descended(study: Study, way: str, people: list[Subject]) -> Callable[[], Factors]:
    coordinates = _coordinates(study, way, len(people))
    strength = 1.0 if way == "w2w" else study.config.strength
    base = study.bundle.base
    return lambda: scaled(descend(base, people, coordinates).factors, strength)


def _coordinates(study: Study, way: str, count: int) -> Coordinates:
    """Where a way descends: from the mean of known latents, under their covariance.

    In the synthesizer's codec; in a VAE (the paper's second approach); or in weights2weights' own
    components, with its own settings.
    """
    bundle, one = study.bundle, study.bundle.synthesizer
    codec, layout, known, config = one.codec, one.layout, bundle.library.latents, InversionConfig()
    if way in ("inversion, VAE", "w2w"):
        vectors, layout = study.vectors[0], study.layout
        if way == "w2w":
            codec = components = weights2weights.components_of(vectors, bundle.base.device).cpu()
            config = weights2weights.in_latents(weights2weights.SETTINGS, components)
        else:
            codec = study.standard_codec("vae", study.config.seeds[0])
        known = codec.encode(vectors)
    on_device = copy.deepcopy(codec).to(bundle.base.device)

    def decode(latents: Tensor) -> Factors:
        return layout.unflatten(on_device.decode(latents))

    steps = study.config.optimised
    if way == "mixture":
        mixture = MixtureConfig()
        mixture = replace(mixture, optimizer=replace(mixture.optimizer, steps=steps))
        return Mixture(mixture, count, known, decode)
    config = replace(config, optimizer=replace(config.optimizer, steps=steps))
    return Inversion(config, count, known, decode)


def trained(study: Study) -> list[Cost]:
    """LoRAs from nothing and from what the regression predicts, and all weights."""
    found, bundle, most = [], study.bundle, SHOWN[-1]
    for count in study.config.trained:
        recipe = replace(Recipe(), targets=bundle.recipe.targets, steps=count)
        train = partial(partial, _fleet, study, recipe, None)
        found.append(_timed(study, "LoRA", most, count, recipe.fingerprint, train))
        found.append(_all_weights(study, count))
    if (anchor := bundle.pretrained) is not None:
        recipe = study.recipe("ours")
        train = partial(partial, _fleet, study, recipe, anchor.predict)
        decides, steps = recipe.fingerprint, recipe.steps
        found.append(_timed(study, "LoRA, anchored", most, steps, decides, train))
    return found


def _all_weights(study: Study, steps: int) -> Cost:
    """Training all weights, for the first few subjects one after another."""
    config, most = study.config, SHOWN[-1]
    facts = {"steps": steps, "subjects": config.fully_trained, "curve": config.curve}
    middle = sorted(config.trained)[len(config.trained) // 2]

    def similarity(rate: float) -> float:
        cell = study.cell(
            "rate of all weights",
            {**facts, "steps": middle, "rate": rate},
            lambda: _fine_tuned(study, study.curve, middle, rate),
        )
        return interval([cell[SIMILARITY]])["mean"]

    def measure() -> Values:
        return _fine_tuned(study, study.test, steps, max(config.full_rates, key=similarity))

    asked = {"method": "all weights", "images": most, **facts, "rates": config.full_rates}
    return Cost("all weights", most, steps, study.cell("cost", asked | study.tested, measure))


def _fine_tuned(study: Study, run: Benchmark, steps: int, rate: float) -> Values:
    """What the first subjects are like with all weights trained on them."""
    base, spent, few = study.bundle.base, 0.0, study.config.fully_trained
    images = []
    for row, person in enumerate(study.people(run, SHOWN[-1])[:few]):
        begun = time.perf_counter()
        weights = fine_tune(
            base, person, OptimizerConfig(steps=steps, learning_rate=rate, clip=1.0)
        )
        spent += time.perf_counter() - begun
        images.append(_within(run, weights_of(base, weights), range(row, row + 1)))
    figures = as_json(run.score(torch.stack(images)))
    return {"seconds": spent / few, "rate": rate, **figures}


def _within(run: Benchmark, context: AbstractContextManager[Any], rows: range) -> Tensor:
    """Images of subjects made inside a context that changes the base model."""
    with context:
        return run.images(Contender(name="inside"), rows)


@claim(
    "adapter methods",
    says="Adapter methods give up identity, or new scenes",
    section="1",
    rule="Holds: an IP-Adapter has less identity similarity than ours, or follows prompts less, "
    "and not more of either; partly: it has less of one. Both learn from the same images in as "
    "many steps, and validation subjects choose the scale of its attention and the strength of "
    "ours. Ours as it is handed out, which has learned from more, is shown beside them.",
)
def adapter_methods(study: Study) -> Finding:
    """Train an IP-Adapter and our regression alike."""
    config, shipped = study.config, study.bundle.pretrained or study.bundle.synthesizer
    theirs, ours = (
        [_at_best(study, name, train, seed) for seed in config.seeds]
        for name, train in (("IP-Adapter", _ip_adapter), ("ours, trained alike", _alike))
    )
    out = study.cell(
        "ours",
        study.tested,
        lambda: study.figures(synthesised(shipped, study.people(study.test, 1))),
    )
    more = {
        name: difference([cell[name] for cell in ours], [cell[name] for cell in theirs])
        for name in out
    }
    alike, prompts = more[SIMILARITY], more["prompt_following"]
    loses = alike["lo"] > 0 or prompts["lo"] > 0
    wins = alike["hi"] < 0 or prompts["hi"] < 0
    compared: Mapping[str, Sequence[Mapping[str, Any]]] = {
        "IP-Adapter": theirs,
        "ours, trained alike": ours,
        "ours, as handed out": [out],
    }
    rows = [
        {"method": name, **{figure: interval([cell[figure] for cell in cells]) for figure in out}}
        for name, cells in compared.items()
    ]
    return Finding(
        verdict=judged(holds=loses and not wins, partly=loses),
        why={
            "ours less an IP-Adapter": {"identity similarity": alike, "prompts followed": prompts},
            "strengths": [cell["scale"] for cell in ours],
            "scales": [cell["scale"] for cell in theirs],
        },
        tables={"Beside an IP-Adapter": rows},
    )


#: A method that was trained: measures subjects at a scale of what it adds.
Method: TypeAlias = Callable[[Benchmark, float], Values]


def _at_best(
    study: Study, name: str, train: Callable[[Study, Optimisation], Method], seed: int
) -> Mapping[str, Any]:
    """One training, and what it is worth at the scale that suits validation subjects best."""
    config, warmup = study.config, 1 if study.config.smoke else 200
    optimisation = Optimisation(
        steps=config.ip_steps, batch=config.ip_batch, lr=1e-3, warmup=warmup, seed=seed
    )

    def measure() -> Values:
        method = train(study, optimisation)
        practised = {s: method(study.curve, s)[SIMILARITY] for s in config.ip_scales}
        best = max(practised, key=lambda scale: sum(practised[scale]))
        return {"scale": best, **method(study.test, best)}

    facts = {"training": optimisation, "subjects": config.ip_subjects, "scales": config.ip_scales}
    facts |= {"curve": config.curve, **study.tested}
    return study.cell(name, facts, measure)


def _training_subjects(study: Study) -> AvatarSubjects:
    count, size = study.config.ip_subjects, study.bundle.base.image_size
    return AvatarSubjects(split="train", count=count, images=8, size=size, series="ip-adapter")


def _ip_adapter(study: Study, optimisation: Optimisation) -> Method:
    base, config = study.bundle.base, IPAdapterConfig(optimisation=optimisation)
    checkpoint = study.cache.folder / f"ip-adapter-{optimisation.seed}.safetensors"
    encoder, source = study.bundle.synthesizer.encoder, _training_subjects(study)
    adapter = train_ip_adapter(base, encoder, source, config, checkpoint)

    def method(run: Benchmark, scale: float) -> Values:
        images, conditions = [], study.conditions(run)
        guided = run.config.image_guidance != 1
        at_once = max(1, run.config.sampling_batch // run.config.images)
        for rows in torch.arange(len(conditions)).split(at_once):
            seen, some = conditions[rows].to(base.device), range(int(rows[0]), int(rows[-1]) + 1)
            context = adapter.attached(base.denoiser, seen, guided=guided, scale=scale)
            images.append(_within(run, context, some).unflatten(0, (len(rows), -1)))
        return as_json(run.score(torch.cat(images)))

    return method


def _alike(study: Study, optimisation: Optimisation) -> Method:
    """The regression through the base model's loss, which ours starts from."""
    bundle, encoder = study.bundle, study.bundle.synthesizer.encoder
    checkpoint = study.cache.folder / f"alike-{optimisation.seed}.safetensors"
    config = PredictorTraining(optimisation=optimisation, held_out=0)
    source = _training_subjects(study)
    made = train_predictor(bundle.base, encoder, source, bundle.recipe, config, checkpoint)
    whole = Synthesizer.of(bundle.base, made.layout, encoder, made.hypernet, made.codec)

    def method(run: Benchmark, strength: float) -> Values:
        return study.figures(scaled(whole.predict(study.people(run, 1)), strength), run)

    return method
