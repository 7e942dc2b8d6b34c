"""Train a regression and its codec through the base model's denoising loss.

Each step predicts the adapters of a few subjects from the embedding of one picture each, and asks
them to denoise other pictures of the same subjects.  No adapter is trained by itself, so what is
learned is a function of the condition, without the noise of training runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Layout
from lorasynth.base import BaseModel, StackedAdapters
from lorasynth.codec import PCA
from lorasynth.collect import Recipe
from lorasynth.collect.draws import Draw
from lorasynth.collect.encoded import EncodedSubjects, encode_subjects
from lorasynth.collect.fleet import start_factors
from lorasynth.collect.loop import denoising_losses
from lorasynth.condition import ConditionEncoder
from lorasynth.config import to_dict
from lorasynth.errors import ConfigError
from lorasynth.hypernet import LatentRegression, LatentRegressionConfig
from lorasynth.pictures import Subject, SubjectSource
from lorasynth.predict.predictor import Predictor
from lorasynth.progress import progress
from lorasynth.randomness import stream_seed
from lorasynth.training import Optimisation, Trainer


@dataclass(frozen=True, kw_only=True)
class PredictorTraining:
    """How a predictor is built and trained.

    Attributes:
        model: the regression.
        latents: directions that adapters are mixed of.
        optimisation: steps, learning rate, averaging and seed; its batch is the number of subjects.
        pictures: denoised of each subject in one step; at equal cost, many subjects with one
            picture each teach more than few with several.
    """

    model: LatentRegressionConfig = field(default_factory=LatentRegressionConfig)
    latents: int = 128
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=10_000, batch=64, lr=1e-3, weight_decay=0.0)
    )
    pictures: int = 1


class Predicting(NamedTuple):
    """What training gives: the parts that a synthesizer is made of, beside its encoder."""

    hypernet: LatentRegression
    codec: PCA
    layout: Layout


def train_predictor(
    base: BaseModel,
    encoder: ConditionEncoder,
    source: SubjectSource,
    recipe: Recipe,
    config: PredictorTraining,
    checkpoint: Path,
) -> Predicting:
    """Train, from the checkpoint if there is one.

    Args:
        base: the frozen base model.
        encoder: makes the conditions.
        source: whose pictures teach.
        recipe: says what is adapted, with which rank and from which A.
        config: how.
        checkpoint: file to save to and to resume from.

    Raises:
        ConfigError: the recipe trains A too, or the checkpoint is of another run.
        BundleError: the checkpoint is damaged.
    """
    if recipe.trained != "B":
        raise ConfigError(
            f'a predictor needs one A for all adapters, but the recipe trains "{recipe.trained}": '
            'use trained="B"'
        )
    encoded, embeddings = _encode(base, encoder, source)
    start = start_factors(base.target_linears(recipe.targets), recipe)
    torch.manual_seed(stream_seed(config.optimisation.seed, "predictor"))
    model = Predictor(config.model, config.latents, embeddings.shape[2], start)
    model.regression.condition_normaliser.fit(embeddings.flatten(0, 1).cpu(), whitening=0.0)

    def loss(model: Any, step: int) -> tuple[Tensor, str]:
        rows, seen, draw = _draw(base, encoded, embeddings, config, step)
        some = replace(encoded, first=encoded.first[rows])
        stacked.factors = model(seen)
        value = denoising_losses(base, some, draw).mean()
        return value, f"loss {value.item():.4f}" if step % 50 == 0 else ""

    settings = to_dict(config) | {"recipe": recipe.stated, "subjects": len(embeddings)}
    trainer = Trainer(model, config.optimisation, checkpoint, base.device, settings)
    # Attached in the backward pass too, where gradient checkpointing computes blocks again.
    with StackedAdapters(base.denoiser, start) as stacked:
        trainer.run("predictor", loss)
    hypernet, codec = model.split(embeddings.flatten(0, 1))
    hypernet.eval().requires_grad_(requires_grad=False)
    return Predicting(hypernet, codec, model.layout)


def _draw(
    base: BaseModel,
    encoded: EncodedSubjects,
    embeddings: Float[Tensor, "n k m"],
    config: PredictorTraining,
    step: int,
) -> tuple[Tensor, Float[Tensor, "b m"], Draw]:
    """Rows of the subjects of a step, one embedding of each, and what each denoises."""
    device, batch = base.device, config.optimisation.batch
    seed = stream_seed(config.optimisation.seed, "predict", step)
    generator = torch.Generator(device).manual_seed(seed)
    shape = (batch, config.pictures)

    def below(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator, device=device)

    rows = below(len(embeddings), batch)
    seen = embeddings[rows, below(embeddings.shape[1], batch)]
    noise = torch.randn(*shape, *encoded.latents.shape[1:], generator=generator, device=device)
    draw = Draw(
        pictures=below(embeddings.shape[1], *shape),
        times=base.draw_times(shape, generator),
        noise=noise,
        dropped=torch.zeros(shape, dtype=torch.bool, device=device),
    )
    return rows, seen, draw


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
