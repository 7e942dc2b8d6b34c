"""Train a regression and its codec through the base model's denoising loss.

Each step predicts the adapters of a few subjects from the embedding of one image each, and asks
them to denoise other images of the same subjects.  No adapter is trained by itself, so what is
learned is a function of the condition, without the noise of training runs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorasynth.adapter import Layout
from lorasynth.base import BaseModel, StackedAdapters
from lorasynth.codec import PCA
from lorasynth.condition import ConditionEncoder
from lorasynth.core.config import to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.core.randomness import stream_seed
from lorasynth.engine import Recipe, Trainer
from lorasynth.engine.fleet import start_factors
from lorasynth.engine.loop import denoising_losses
from lorasynth.hypernet import LatentRegression
from lorasynth.images import SubjectSource
from lorasynth.predict.config import PredictorTraining
from lorasynth.predict.predictor import Predictor
from lorasynth.predict.tasks import ENCODED, draw_task, encode_with_embeddings


class Predicting(NamedTuple):
    """What training gives: parts of a synthesizer, and the ids of those it has learned from."""

    hypernet: LatentRegression
    codec: PCA
    layout: Layout
    ids: list[str]


def train_predictor(
    base: BaseModel,
    encoder: ConditionEncoder,
    source: SubjectSource,
    recipe: Recipe,
    config: PredictorTraining,
    checkpoint: Path,
    *,
    strict: bool = False,
) -> Predicting:
    """Train, from the checkpoint if there is one.

    Args:
        base: the frozen base model.
        encoder: makes the conditions.
        source: whose images teach.
        recipe: says what is adapted, with which rank and from which A.
        config: how.
        checkpoint: file to save to and to resume from; encoded images are kept beside it too.
        strict: stop at the first subject whose photos cannot be used, rather than leave it out.

    Raises:
        ConfigError: the recipe trains A too, or the checkpoint is of another run.
        BundleError: the checkpoint is damaged.
    """
    if recipe.trained != "B":
        raise ConfigError(
            f'a predictor needs one A for all adapters, but the recipe trains "{recipe.trained}": '
            'use trained="B"'
        )
    kept = checkpoint.with_name(ENCODED)
    ids, encoded, embeddings = encode_with_embeddings(base, encoder, source, kept, strict=strict)
    start = start_factors(base.target_linears(recipe.targets), recipe)
    options = config.optimisation
    torch.manual_seed(stream_seed(options.seed, "predictor"))
    model = Predictor(config.model, config.latents, embeddings.shape[2], start)
    model.regression.condition_normaliser.fit(embeddings.flatten(0, 1).cpu(), each=False)

    def loss(model: Any, step: int) -> tuple[Tensor, str]:
        seen, some, draw = draw_task(base, encoded, embeddings, options, config.images, step)
        stacked.factors = model(seen)
        value = denoising_losses(base, some, draw).mean()
        return value, f"loss {value.item():.4f}" if step % 50 == 0 else ""

    settings = to_dict(config) | {"recipe": recipe.stated, "subjects": len(embeddings)}
    settings |= {"base": base.fingerprint, "encoder": encoder.fingerprint}
    trainer = Trainer(model, options, checkpoint, base.device, settings)
    # Attached in the backward pass too, where gradient checkpointing computes blocks again.
    with StackedAdapters(base.denoiser, start) as stacked:
        trainer.run("predictor", loss)
    # in float64, which not every device has
    hypernet, codec = model.cpu().split(embeddings.flatten(0, 1).cpu())
    hypernet.eval().requires_grad_(requires_grad=False)
    return Predicting(hypernet, codec, model.layout, ids)
