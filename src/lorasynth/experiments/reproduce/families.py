"""Introduction: adapter methods give up identity, or new scenes."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from lorasynth.config import to_dict
from lorasynth.experiments.reproduce.finding import (
    CLAIMS,
    Finding,
    difference,
    interval,
    judged,
    text,
)
from lorasynth.experiments.reproduce.study import Study, as_json
from lorasynth.pictures import AvatarSubjects
from lorasynth.predict.ip_adapter import train_ip_adapter


@CLAIMS.register("adapter methods")
def adapter_methods(study: Study) -> Finding:
    """Holds: an IP-Adapter has less likeness than ours, or follows prompts less, and not more."""
    training = study.config.ip_adapter.optimisation
    facts = {
        "training": to_dict(study.config.ip_adapter),
        "subjects": study.config.ip_subjects,
        "trial": to_dict(study.config.trial),
    }
    theirs = study.cell("IP-Adapter", facts, lambda: _ip_adapter(study))
    method = study.bundle.pretrained or study.bundle.synthesizer
    own = {"synthesizer": method.fingerprint, "trial": facts["trial"]}
    ours = study.cell("ours", own, lambda: study.figures(study.synthesised(method)))
    more = {name: difference([ours[name]], [theirs[name]]) for name in ours}
    likeness, prompts = more["likeness"], more["prompt_following"]
    loses = likeness["lo"] > 0 or prompts["lo"] > 0
    wins = likeness["hi"] < 0 or prompts["hi"] < 0
    rows = [
        {"method": name, **{figure: text(interval([values])) for figure, values in found.items()}}
        for name, found in (("ours", ours), ("IP-Adapter", theirs))
    ]
    return Finding(
        claim="Adapter methods give up identity, or new scenes",
        section="1",
        verdict=judged(holds=loses and not wins, partly=loses),
        why=(
            f"Ours less an IP-Adapter, trained on {study.config.ip_subjects} subjects in "
            f"{training.steps} steps of {training.batch}: likeness {text(likeness)}, prompts "
            f"followed {text(prompts)}."
        ),
        values={"ours": ours, "ip_adapter": theirs, "ours_less_ip_adapter": more},
        tables={"Beside an IP-Adapter": rows},
    )


def _ip_adapter(study: Study) -> dict[str, Any]:
    bundle, config = study.bundle, study.config
    size = bundle.base.picture_size
    source = AvatarSubjects(
        split="train", count=config.ip_subjects, pictures=8, size=size, series="ip-adapter"
    )
    checkpoint = study.folder / "ip-adapter.safetensors"
    encoder = bundle.synthesizer.encoder
    adapter = train_ip_adapter(bundle.base, encoder, source, config.ip_adapter, checkpoint)
    guided = study.trial.config.sampling.guidance != 1

    def attached(condition: torch.Tensor) -> AbstractContextManager[None]:
        seen = torch.stack([condition, 0 * condition] if guided else [condition])
        return adapter.attached(bundle.base.denoiser, seen.to(bundle.base.device))

    pictures = study.trial.pictures_within(map(attached, study.trial.conditions))
    return as_json(study.trial.measure(pictures))
