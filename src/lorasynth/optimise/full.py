"""Full fine-tuning of the base model on one subject: what LoRA is compared with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from lorasynth.base import BaseModel
from lorasynth.engine.descent import Descent
from lorasynth.engine.encoded import encode_subjects
from lorasynth.engine.loop import denoising_losses, draws_of
from lorasynth.images import Subject

#: All weights of a denoiser, by name.
Weights: TypeAlias = dict[str, Tensor]


def fine_tune(base: BaseModel, subject: Subject, config: Descent) -> Weights:
    """Train every weight of the denoiser by Adam, with the draws that a LoRA would see.

    Subjects cannot share passes here, since nothing is common to them.

    Args:
        base: whose denoiser is trained, and is as it was afterwards.
        subject: who.
        config: how; its averaging, anchor and optimiser do not apply.

    Returns:
        The trained weights.

    Raises:
        CollectionError: the subject has no images or captions.
    """
    encoded = encode_subjects(base, [subject])
    draws = draws_of(base, config, [subject.id], encoded)
    before = _copy(base)
    base.denoiser.requires_grad_(True)
    parameters = list(base.denoiser.parameters())
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    try:
        for step, draw in enumerate(draws):
            optimiser.param_groups[0]["lr"] = config.rate(step)
            optimiser.zero_grad()
            denoising_losses(base, encoded, draw).sum().backward()
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            optimiser.step()
        return _copy(base)
    finally:
        base.denoiser.load_state_dict(before)
        base.denoiser.requires_grad_(False)
        optimiser.zero_grad()


@contextmanager
def weights_of(base: BaseModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The base model with other weights of its denoiser inside the context."""
    before = _copy(base)
    base.denoiser.load_state_dict(dict(weights))
    try:
        yield
    finally:
        base.denoiser.load_state_dict(before)


def _copy(base: BaseModel) -> Weights:
    return {name: value.detach().clone() for name, value in base.denoiser.state_dict().items()}
