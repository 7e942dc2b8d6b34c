"""Train a predictor through the base model's denoising loss, on the subjects' own pictures.

Each step predicts the adapters of a few subjects from the embedding of one picture each, and asks
them to denoise other pictures of the same subjects.  No adapter is trained by itself, so what is
learned is a function of the condition, without the noise of training runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Layout
from lorasynth.base import BaseModel, StackedAdapters
from lorasynth.collect import Recipe
from lorasynth.collect.draws import Draw
from lorasynth.collect.encoded import EncodedSubjects, encode_subjects
from lorasynth.collect.fleet import denoising_losses, start_factors
from lorasynth.condition import ConditionEncoder
from lorasynth.config import to_dict
from lorasynth.pictures import Subject, SubjectSource
from lorasynth.predict.predictor import Predictor, PredictorConfig
from lorasynth.progress import progress
from lorasynth.randomness import stream_seed
from lorasynth.training import Optimisation, Trainer


@dataclass(frozen=True, kw_only=True)
class PredictorTraining:
    """How a predictor is built and trained.

    Attributes:
        model: what is trained.
        optimisation: steps, learning rate, averaging and seed; its batch is the number of subjects.
        pictures: denoised of each subject in one step.
    """

    model: PredictorConfig = field(default_factory=PredictorConfig)
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=4000, batch=16, lr=1e-3, weight_decay=0.0)
    )
    pictures: int = 4


def train_predictor(
    base: BaseModel,
    encoder: ConditionEncoder,
    source: SubjectSource,
    recipe: Recipe,
    config: PredictorTraining,
    checkpoint: Path,
) -> Predictor:
    """Train, from the checkpoint if there is one, and return the averaged weights.

    Args:
        base: the frozen base model.
        encoder: makes the conditions.
        source: whose pictures teach.
        recipe: says what is adapted, with which rank and from which A.
        config: how.
        checkpoint: file to save to and to resume from.
    """
    encoded, embeddings = _encode(base, encoder, source)
    options, device = config.optimisation, base.device
    start = start_factors(base.target_linears(recipe.targets), recipe)
    torch.manual_seed(stream_seed(options.seed, "predictor"))
    model = Predictor(config.model, Layout.from_factors(start), embeddings.shape[2])
    model.share(start)
    timesteps = base.scheduler.config.num_train_timesteps
    shape = (options.batch, config.pictures)

    def loss(model: Any, step: int) -> tuple[Tensor, str]:
        generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "predict", step))

        def below(high: int, *size: int) -> Tensor:
            return torch.randint(high, size, generator=generator, device=device)

        rows = below(len(embeddings), options.batch)
        seen = embeddings[rows, below(embeddings.shape[1], options.batch)]
        draw = Draw(
            pictures=below(embeddings.shape[1], *shape),
            timesteps=below(timesteps, *shape),
            noise=torch.randn(
                *shape, *encoded.latents.shape[1:], generator=generator, device=device
            ),
            dropped=torch.zeros(shape, dtype=torch.bool, device=device),
        )
        some = replace(encoded, first=encoded.first[rows])
        with StackedAdapters(base.unet, model(seen), recipe.scale):
            value = denoising_losses(base, some, draw).mean()
        return value, f"loss {value.item():.4f}" if step % 50 == 0 else ""

    settings = to_dict(config) | {"recipe": to_dict(recipe), "subjects": len(embeddings)}
    Trainer(model, options, checkpoint, device, settings).run("predictor", loss)
    return model.requires_grad_(requires_grad=False)


@torch.no_grad()
def _encode(
    base: BaseModel, encoder: ConditionEncoder, source: SubjectSource
) -> tuple[EncodedSubjects, Float[Tensor, "n k m"]]:
    """All subjects as the base model sees them, and the embeddings of the same pictures."""
    embeddings: list[Tensor] = []
    with progress("encode subjects", len(source.ids)) as advance:

        def subjects() -> Iterator[Subject]:
            for name in source.ids:
                subject = source.load(name)
                embeddings.append(encoder.embed(subject.pictures))
                yield subject
                advance()

        encoded = encode_subjects(base, subjects())
    pictures = min(encoded.counts)
    return encoded, torch.stack([rows[:pictures] for rows in embeddings]).to(base.device)
