"""Introduction: adapter methods give up identity, or new scenes."""

from dataclasses import replace
from typing import Any

import torch

from lorasynth.config import to_dict
from lorasynth.experiments.reproduce.finding import (
    CLAIMS,
    Finding,
    difference,
    flat,
    interval,
    judged,
    text,
)
from lorasynth.experiments.reproduce.study import Study, as_json, synthesised
from lorasynth.experiments.trial import Measured, Trial
from lorasynth.pictures import AvatarSubjects
from lorasynth.predict.ip_adapter import IPAdapter, IPAdapterConfig, train_ip_adapter


@CLAIMS.register("adapter methods")
def adapter_methods(study: Study) -> Finding:
    """Holds: an IP-Adapter has less likeness than ours, or follows prompts less, and not more.

    The scale of its attention, as the strength of ours, is chosen on validation subjects.
    """
    config, method = study.config, study.bundle.pretrained or study.bundle.synthesizer
    theirs = [_ip_cell(study, seed) for seed in config.seeds]

    def measure() -> dict[str, Any]:
        return study.figures(synthesised(method, study.trial.people(1)))

    own = study.cell("ours", study.tried, measure)
    ours = [own] * len(theirs)
    more = {
        name: difference([cell[name] for cell in ours], [cell[name] for cell in theirs])
        for name in own
    }
    likeness, prompts = more["likeness"], more["prompt_following"]
    loses = likeness["lo"] > 0 or prompts["lo"] > 0
    wins = likeness["hi"] < 0 or prompts["hi"] < 0
    rows = [
        {"method": name, **{figure: interval([cell[figure] for cell in cells]) for figure in own}}
        for name, cells in (("ours", ours), ("IP-Adapter", theirs))
    ]
    training = config.ip_adapter.optimisation
    scales = ", ".join(f"{cell['scale']:g}" for cell in theirs)
    return Finding(
        claim="Adapter methods give up identity, or new scenes",
        section="1",
        verdict=judged(holds=loses and not wins, partly=loses),
        why=(
            f"Ours less an IP-Adapter, trained on {config.ip_subjects} subjects in "
            f"{training.steps} steps of {training.batch} (scales {scales}): likeness "
            f"{text(likeness)}, prompts followed {text(prompts)}."
        ),
        values={"rows": rows, "ours_less_ip_adapter": more},
        seeds=config.seeds,
        tables={"Beside an IP-Adapter": [flat(row) for row in rows]},
    )


def _ip_cell(study: Study, seed: int) -> dict[str, Any]:
    config = study.config
    optimisation = replace(config.ip_adapter.optimisation, seed=seed)
    training = replace(config.ip_adapter, optimisation=optimisation)
    facts = {
        "training": to_dict(training),
        "subjects": config.ip_subjects,
        "scales": config.ip_scales,
        "curve": to_dict(config.curve),
        **study.tried,
    }
    found: dict[str, Any] = study.cell("IP-Adapter", facts, lambda: _ip_adapter(study, training))
    return found


def _ip_adapter(study: Study, training: IPAdapterConfig) -> dict[str, Any]:
    """One training, and what it is worth at the scale that suits validation subjects best."""
    bundle, config = study.bundle, study.config
    source = AvatarSubjects(
        split="train",
        count=config.ip_subjects,
        pictures=8,
        size=bundle.base.picture_size,
        series="ip-adapter",
    )
    checkpoint = study.folder / f"ip-adapter-{training.optimisation.seed}.safetensors"
    encoder = bundle.synthesizer.encoder
    adapter = train_ip_adapter(bundle.base, encoder, source, training, checkpoint)
    practised = {scale: _measured(study.curve, adapter, scale) for scale in config.ip_scales}
    best = max(practised, key=lambda scale: float(practised[scale].likeness.mean()))
    return {"scale": best, **as_json(_measured(study.trial, adapter, best))}


def _measured(run: Trial, adapter: IPAdapter, scale: float) -> Measured:
    """Pictures made with an IP-Adapter for the subjects of a trial."""
    base, config, pictures = run.instruments.base, run.config, []
    guided = config.sampling.guidance != 1
    at_once = max(1, config.sampling.batch // config.pictures)
    for rows in torch.arange(config.subjects).split(at_once):
        seen = run.conditions[rows].to(base.device)
        with adapter.attached(base.denoiser, seen, guided=guided, scale=scale):
            pictures.append(run.pictures(None, range(int(rows[0]), int(rows[-1]) + 1)))
    return run.measure(torch.cat(pictures))
