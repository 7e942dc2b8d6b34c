"""How good the embedded parts are: the judge, the encoders, and the base model's caption following.

All subjects are of the test split, whose combinations of attributes no part has seen in training.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lorasynth.avatars import captions
from lorasynth.avatars.attributes import shares_found
from lorasynth.avatars.drawing import (
    AvatarSubjects,
    Identity,
    Scene,
    draw,
    sample_identity,
    sample_scene,
    with_colours_of,
)
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.pool import labels_of
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.condition import ConditionEncoder
from lorasynth.core.config import to_dict
from lorasynth.core.randomness import numpy_stream
from lorasynth.evaluation.identification import identification

#: Subjects who share all their colours come in groups of this many.
SAME_COLOUR_GROUP = 100


def _draws(count: int, seed: int, size: int) -> tuple[UInt8[Tensor, "n h w 3"], list[list[int]]]:
    images, labels = [], []
    for i in range(count):
        rng = numpy_stream(seed, "parts", i)
        identity, scene = sample_identity(rng, "test"), sample_scene(rng)
        images.append(draw(identity, scene, size))
        labels.append(labels_of(identity, scene))
    return torch.from_numpy(np.stack(images)), labels


def judge_accuracy(judge: AttributeJudge, count: int, seed: int) -> dict[str, float]:
    """Per attribute: how often the judge is right about really drawn images."""
    images, labels = _draws(count, seed, judge.config.image_size)
    return shares_found(judge.labels(images), torch.tensor(labels))


@dataclass(frozen=True, kw_only=True)
class Following:
    """What is asked for.

    Attributes:
        count: captions, each of which names a whole identity and scene.
        split: whose identities.
        seed: of identities, scenes and noise.
        sampling: how the base model makes images.
    """

    count: int = 500
    split: Literal["validation", "test"] = "validation"
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def follow_captions(
    base: BaseModel, judge: AttributeJudge, config: Following
) -> tuple[dict[str, float], UInt8[Tensor, "n h w 3"]]:
    """Per attribute, how often the judge finds what was asked for, and the images."""
    prompts, asked = [], []
    for i in range(config.count):
        rng = numpy_stream(config.seed, "caption following", i)
        identity, scene = sample_identity(rng, config.split), sample_scene(rng)
        prompts.append(captions.described(identity, scene))
        asked.append(labels_of(identity, scene))
    seeds = [config.seed + i for i in range(config.count)]
    images = base.sample(prompts, seeds, config=config.sampling)
    return shares_found(judge.labels(images), torch.tensor(asked)), images


def encoder_report(encoder: ConditionEncoder, count: int, seed: int) -> dict[str, Any]:
    """Identify unseen subjects by a second image, among all, and among equals in colour."""
    subjects = AvatarSubjects(split="test", count=count, images=2, seed=seed, series="encoder")
    identities = [subjects.identity(i) for i in subjects.ids]
    scenes = [subjects.scenes(i) for i in subjects.ids]
    groups, size = [], min(SAME_COLOUR_GROUP, count)
    for start in range(0, count - size + 1, size):
        rows, model = slice(start, start + size), identities[start]
        alike = [with_colours_of(identity, model) for identity in identities[rows]]
        groups.append(_identify(encoder, alike, scenes[rows]))
    same_colours = {name: sum(one[name] for one in groups) / len(groups) for name in groups[0]}
    same_colours["n"] = sum(one["n"] for one in groups)
    return {"unseen": _identify(encoder, identities, scenes), "same_colours": same_colours}


def _identify(
    encoder: ConditionEncoder, identities: list[Identity], scenes: list[list[Scene]]
) -> dict[str, Any]:
    size = encoder.image_size
    first, second = (
        encoder.embed(
            torch.from_numpy(
                np.stack([draw(i, s[k], size) for i, s in zip(identities, scenes, strict=True)])
            )
        )
        for k in (0, 1)
    )
    return asdict(identification(first, second))


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """How much is measured.

    Attributes:
        drawn: images that the judge is judged on.
        samples: images that the base model makes.
        subjects: that the encoders must tell apart.
        seed: of subjects, scenes and noise.
        sampling: how the base model makes images.
    """

    drawn: int = 1000
    samples: int = 200
    subjects: int = 500
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def parts_report(
    base: BaseModel,
    encoders: list[ConditionEncoder],
    judge: AttributeJudge,
    config: PartsConfig,
) -> dict[str, Any]:
    """All of the above as one JSON object."""
    seed = config.seed
    asked = Following(count=config.samples, split="test", seed=seed, sampling=config.sampling)
    followed, _ = follow_captions(base, judge, asked)
    return {
        "config": to_dict(config),
        "judge_on_drawn_images": judge_accuracy(judge, config.drawn, seed),
        "captions_followed": followed,
        "encoders": {e.name: encoder_report(e, config.subjects, seed) for e in encoders},
    }
