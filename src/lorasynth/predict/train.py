"""Train a regression and its codec through the base model's denoising loss.

Each step predicts the adapters of a few subjects from the embedding of one image each, and asks
them to denoise other images of the same subjects.  No adapter is trained by itself, so what is
learned is a function of the condition, without the noise of training runs.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lorasynth.adapter import Layout
from lorasynth.base import BaseModel, StackedAdapters
from lorasynth.codec import PCA
from lorasynth.collect.sheet import MOST, PASSES, Watched
from lorasynth.condition import ConditionEncoder
from lorasynth.core.device import has_fast_bfloat16
from lorasynth.core.errors import CollectionError, ConfigError
from lorasynth.core.progress import Note, note
from lorasynth.core.randomness import stream_seed
from lorasynth.engine import Recipe, Trainer
from lorasynth.engine.draws import Draw
from lorasynth.engine.encoded import EncodedSubjects
from lorasynth.engine.fleet import start_factors
from lorasynth.engine.loop import denoising_losses
from lorasynth.engine.processes import Processes
from lorasynth.hypernet import LatentRegression
from lorasynth.images import SubjectSource
from lorasynth.predict.config import PredictorTraining
from lorasynth.predict.predictor import Predictor
from lorasynth.predict.tasks import ENCODED, Taught, divided, draw_task, encode_with_embeddings

#: Share of the time that the loss of held-out subjects takes, and that samples take, in passes
#: without gradients, of which a training sample costs about two.
_SHARE = 0.02 * 2
#: Embeddings by which units and latents are chosen, of all that there are.
_ROWS = 100_000
#: Conditions, and what must be denoised with them.
Task: TypeAlias = tuple[Tensor, EncodedSubjects, Draw]
#: The figure by which training ends and its weights are chosen.
_LOSS = "held_out_loss"


class Predicting(NamedTuple):
    """What training gives: parts of a synthesizer, and the ids of those it has learned from."""

    hypernet: LatentRegression
    codec: PCA
    layout: Layout
    ids: list[str]
    #: Ids of those it was measured on.
    held_out: list[str]
    #: Figures of the weights that were kept, with their step; empty if nobody was held out.
    figures: Mapping[str, float]


@dataclass
class _Losses:
    """The loss of each step, and what is measured of held-out subjects between steps."""

    base: BaseModel
    config: PredictorTraining
    known: Taught
    aside: Taught
    stacked: StackedAdapters
    processes: Processes
    samples: Watched | None = None
    #: Reads the next step's images while this one is computed.
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    ahead: dict[int, "Future[Task]"] = field(default_factory=dict)

    def __call__(self, model: Any, step: int) -> tuple[Tensor, Note]:
        for one in (step, step + 1):
            if one not in self.ahead:
                self.ahead[one] = self.reader.submit(self._draw, self.known, one, self.processes)
        value = self._of(self.ahead.pop(step).result(), model)
        seen = value.detach()
        return value, lambda: f"loss {seen.item():.4f}"

    def _draw(self, some: Taught, step: int, processes: Processes | None = None) -> Task:
        options, images = self.config.optimisation, self.config.images
        return draw_task(self.base, some, options, images, step, processes)

    def _of(self, drawn: Task, model: Any) -> Tensor:
        self.stacked.factors = model(drawn[0])
        return denoising_losses(self.base, *drawn[1:]).mean()

    def figures(self, averaged: Any, step: int) -> Mapping[str, float]:
        """The loss of held-out subjects on the same draws at every call, and samples when due."""
        config, device = self.config, self.base.device
        count = max(round(_SHARE * config.record_every), 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device)):
            draws = (self._draw(self.aside, -1 - i) for i in range(count))
            losses = [self._of(drawn, averaged).item() for drawn in draws]
        found = {_LOSS: sum(losses) / count}
        last = step == config.optimisation.steps
        if self.samples and (last or step % config.samples_every < config.record_every):
            factors = averaged(self.samples.conditions.to(device))
            self.stacked.detach()
            found |= self.samples(factors, step)
            self.stacked.attach()
        return found


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
        source: whose images teach.
        recipe: says what is adapted, with which rank and from which A.
        config: how.
        checkpoint: file to save to and to resume from; beside it are encoded images, metrics and
            samples.

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
    whole = encode_with_embeddings(base, encoder, source, kept, strict=config.strict)
    known, aside = map(whole.of, divided(source, config.held_out))
    how = "by the stated split" if getattr(source, "splits", {}) else "by hashes of their ids"
    note(f"held out {how}: {len(aside.ids)} of {len(whole.ids)} subjects (--held-out)")
    if not known.ids:
        raise CollectionError("there must be subjects to learn from, but all are held out")
    options, seen = config.optimisation, known.embeddings.some(_ROWS)
    start = start_factors(base.target_linears(recipe.targets), recipe)
    torch.manual_seed(stream_seed(options.seed, "predictor"))
    model = Predictor(config.model, config.latents, known.width, start)
    model.regression.condition_normaliser.fit(seen.cpu(), each=False)
    settings = _settings(base, encoder, recipe, config) | {"subjects": len(known.ids)}
    trainer = Trainer(model, options, checkpoint, base.device, settings, shardable=True)
    trainer.processes.require_even(options.batch)
    stacked = StackedAdapters(base.denoiser, start)
    losses = _Losses(base, config, known, aside, stacked, trainer.processes)
    trainer.record(config.record_every)
    if aside.ids:
        trainer.record(config.record_every, losses.figures, lowest=_LOSS, patience=config.patience)
        passes = _SHARE * config.samples_every * options.batch * config.images
        if passes and encoder.looks:
            most, folder = min(max(int(passes / PASSES), 1), MOST), checkpoint.with_name("samples")
            losses.samples = Watched(base, encoder, source, aside.ids, folder, most)
    # Attached in the backward pass too, where gradient checkpointing computes blocks again.
    with losses.stacked, losses.reader:
        trainer.run("predictor", losses)
    hypernet, codec = model.cpu().split(seen.cpu())  # in float64, which not every device has
    hypernet.eval().requires_grad_(requires_grad=False)
    rows = [row for row in trainer.history if _LOSS in row]
    figures = min(rows, key=lambda row: row[_LOSS], default={})
    return Predicting(hypernet, codec, model.layout, known.ids, aside.ids, figures)


def _settings(
    base: BaseModel, encoder: ConditionEncoder, recipe: Recipe, config: PredictorTraining
) -> dict[str, Any]:
    """What weights depend on."""
    made_of = {"base": base.fingerprint, "encoder": encoder.fingerprint}
    frames = {"frames": [list(sides) for sides in base.frames]} if len(base.frames) > 1 else {}
    return {**config.stated, "recipe": recipe.stated, **made_of, **frames}
