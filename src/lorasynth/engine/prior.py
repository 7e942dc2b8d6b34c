"""Prior preservation: an adapter also learns to leave the subject's class as it is.

Beside each image of its subject it denoises one of the class, such as "a person", that the base
model itself made (Ruiz et al. 2023, https://arxiv.org/abs/2208.12242).  The images are the same
for all adapters of a library: they are made and encoded once.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.core.config import to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import Advance, progress
from lorasynth.core.randomness import stream_seed
from lorasynth.core.weights import kept_tensors
from lorasynth.engine.descent import Descent
from lorasynth.engine.encoded import EncodedSubjects
from lorasynth.engine.loop import denoising_losses, draws_of

#: Class images made between two reports of progress.
_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Which images of the class are made, and what they weigh.

    Attributes:
        prompt: that makes an image of any member of the class.
        images: how many.
        weight: of their loss beside that of the subject's images.
        steps: solver steps for each.
        guidance: of the solver.
    """

    prompt: str
    images: int = 200
    weight: float = 1.0
    steps: int = 50
    guidance: float = 7.5

    def __post_init__(self) -> None:
        if min(self.images, self.steps) < 1 or self.weight <= 0:
            raise ConfigError(
                "a prior must have at least 1 image and 1 step and a positive weight, but has "
                f"images={self.images}, steps={self.steps}, weight={self.weight}"
            )


def class_latents(
    base: BaseModel, prior: Prior, seed: int, advance: Advance | None = None
) -> Float[Tensor, "p c h w"]:
    """Let the base model make the images of the class, and encode them.

    Args:
        base: the base model.
        prior: which images.
        seed: of the named streams that their noise comes from.
        advance: called with the number of images made since the last call.
    """
    sampling = SamplingConfig(steps=prior.steps, guidance=prior.guidance)
    seeds = [stream_seed(seed, "class", prior.prompt, i) for i in range(prior.images)]
    parts = []
    for start in range(0, prior.images, _CHUNK):
        some = seeds[start : start + _CHUNK]
        images = base.sample([prior.prompt] * len(some), some, config=sampling)
        parts.append(base.encode_images(images))
        if advance is not None:
            advance(len(some))
    return torch.cat(parts)


def kept_class_latents(
    base: BaseModel,
    prior: Prior,
    seed: int,
    library: Path,
    make: Callable[[Advance], Float[Tensor, "p c h w"]] | None = None,
) -> Float[Tensor, "p c h w"]:
    """As `class_latents`, made once and kept in a file, which all libraries of a folder share.

    Args:
        base: the base model.
        prior: which images.
        seed: see `class_latents`.
        library: beside which the file is; its name says what decides the latents.
        make: returns them; None: `class_latents` does, here.

    Raises:
        BundleError: the file is damaged.
    """
    stated = json.dumps([to_dict(prior), seed, base.fingerprint, base.image_size])
    name = f"class-{hashlib.sha256(stated.encode()).hexdigest()[:16]}.safetensors"
    make = make or partial(class_latents, base, prior, seed)

    def made() -> dict[str, Tensor]:
        with progress("class images", prior.images) as advance:
            return {"latents": make(advance)}

    return kept_tensors(library.with_name(name), made)["latents"]


def prior_losses(
    base: BaseModel,
    config: Descent,
    prior: Prior,
    latents: Float[Tensor, "p c h w"],
    subject_ids: Sequence[str],
) -> Callable[[], Float[Tensor, " n"]]:
    """The weighted loss of class images for each of n adapters; to be called once a step.

    What a subject draws comes from streams of its own, so it does not depend on the fleet.
    """
    n, count = len(subject_ids), len(latents)
    text = base.encode_prompts([prior.prompt])
    encoded = EncodedSubjects(
        latents=latents,
        texts=text.map(lambda part: part.expand(count, *part.shape[1:])),
        empty=text,
        first=torch.zeros(n, dtype=torch.int64, device=base.device),
        counts=(count,) * n,
    )
    own = replace(config, seed=stream_seed(config.seed, "prior"), caption_dropout=0.0)
    draws = draws_of(base, own, subject_ids, encoded)
    return lambda: prior.weight * denoising_losses(base, encoded, next(draws))
