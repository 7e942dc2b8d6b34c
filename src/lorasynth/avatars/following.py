"""Caption following: how often the judge finds what a caption asked the base model for."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from lorasynth.avatars import captions
from lorasynth.avatars.attributes import shares_found
from lorasynth.avatars.drawing import sample_identity, sample_scene
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.pool import labels_of
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.core.randomness import numpy_stream


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
