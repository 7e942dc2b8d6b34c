"""Introduction: adapter methods give up identity, or new scenes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lorasynth.adapter import scaled
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.core.config import to_dict
from lorasynth.engine.trainer import Optimisation
from lorasynth.evaluation.trial import Measured, Trial
from lorasynth.predict import PredictorTraining, train_predictor
from lorasynth.studies.ip_adapter import IPAdapter, train_ip_adapter
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
from lorasynth.synthesizer import Synthesizer

#: A method that was trained: measures a trial's subjects at a scale of what it adds.
Method = Callable[[Trial, float], Measured]


@CLAIMS.register("adapter methods")
def adapter_methods(study: Study) -> Finding:
    """Holds: an IP-Adapter has less likeness than ours, or follows prompts less, and not more.

    Both learn from the same images in as many steps, and validation subjects choose the scale of
    its attention and the strength of ours.  Ours as it is handed out, which has learnt from more,
    is shown beside them.
    """
    config, shipped = study.config, study.bundle.pretrained or study.bundle.synthesizer
    theirs = [_cell(study, "IP-Adapter", _ip_adapter, seed) for seed in config.seeds]
    ours = [_cell(study, "ours, trained alike", _alike, seed) for seed in config.seeds]
    out = study.cell(
        "ours", study.tried, lambda: study.figures(synthesised(shipped, study.trial.people(1)))
    )
    more = {
        name: difference([cell[name] for cell in ours], [cell[name] for cell in theirs])
        for name in out
    }
    likeness, prompts = more["likeness"], more["prompt_following"]
    loses = likeness["lo"] > 0 or prompts["lo"] > 0
    wins = likeness["hi"] < 0 or prompts["hi"] < 0
    compared = {"IP-Adapter": theirs, "ours, trained alike": ours, "ours, as handed out": [out]}
    rows = [
        {"method": name, **{figure: interval([cell[figure] for cell in cells]) for figure in out}}
        for name, cells in compared.items()
    ]
    training = config.ip_adapter.optimisation
    scales, strengths = (
        ", ".join(f"{cell['scale']:g}" for cell in cells) for cells in (theirs, ours)
    )
    return Finding(
        claim="Adapter methods give up identity, or new scenes",
        section="1",
        verdict=judged(holds=loses and not wins, partly=loses),
        why=(
            f"Ours less an IP-Adapter, each trained on {config.ip_subjects} subjects in "
            f"{training.steps} steps of {training.batch} (strengths {strengths}; scales {scales}): "
            f"likeness {text(likeness)}, prompts followed {text(prompts)}."
        ),
        values={"rows": rows, "ours_less_ip_adapter": more},
        seeds=config.seeds,
        tables={"Beside an IP-Adapter": [flat(row) for row in rows]},
    )


def _cell(
    study: Study, name: str, trained: Callable[[Study, Optimisation], Method], seed: int
) -> dict[str, Any]:
    """One training, and what it is worth at the scale that suits validation subjects best."""
    config = study.config
    optimisation = replace(config.ip_adapter.optimisation, seed=seed)
    facts = {
        "training": to_dict(replace(config.ip_adapter, optimisation=optimisation)),
        "subjects": config.ip_subjects,
        "scales": config.ip_scales,
        "curve": to_dict(config.curve),
        **study.tried,
    }

    def measure() -> dict[str, Any]:
        method = trained(study, optimisation)
        practised = {scale: method(study.curve, scale) for scale in config.ip_scales}
        best = max(practised, key=lambda scale: float(practised[scale].likeness.mean()))
        return {"scale": best, **as_json(method(study.trial, best))}

    found: dict[str, Any] = study.cell(name, facts, measure)
    return found


def _ip_adapter(study: Study, optimisation: Optimisation) -> Method:
    bundle = study.bundle
    adapter = train_ip_adapter(
        bundle.base,
        bundle.synthesizer.encoder,
        _subjects(study),
        replace(study.config.ip_adapter, optimisation=optimisation),
        study.folder / f"ip-adapter-{optimisation.seed}.safetensors",
    )
    return lambda run, scale: _attended(run, adapter, scale)


def _alike(study: Study, optimisation: Optimisation) -> Method:
    """The regression through the base model's loss, which ours starts from."""
    bundle, encoder = study.bundle, study.bundle.synthesizer.encoder
    made = train_predictor(
        bundle.base,
        encoder,
        _subjects(study),
        bundle.recipe,
        PredictorTraining(optimisation=optimisation),
        study.folder / f"alike-{optimisation.seed}.safetensors",
    )
    method = Synthesizer.of(bundle.base, made.layout, encoder, made.hypernet, made.codec)

    def measured(run: Trial, strength: float) -> Measured:
        adapters = scaled(method.predict(run.people(1)), strength)
        return run.measure(run.images(adapters))

    return measured


def _subjects(study: Study) -> AvatarSubjects:
    return AvatarSubjects(
        split="train",
        count=study.config.ip_subjects,
        images=8,
        size=study.bundle.base.image_size,
        series="ip-adapter",
    )


def _attended(run: Trial, adapter: IPAdapter, scale: float) -> Measured:
    """Images made with an IP-Adapter for the subjects of a trial."""
    base, config, images = run.instruments.base, run.config, []
    guided = config.sampling.guidance != 1
    at_once = max(1, config.sampling.batch // config.images)
    for rows in torch.arange(config.subjects).split(at_once):
        seen = run.conditions[rows].to(base.device)
        with adapter.attached(base.denoiser, seen, guided=guided, scale=scale):
            images.append(run.images(None, range(int(rows[0]), int(rows[-1]) + 1)))
    return run.measure(torch.cat(images))
