"""An adapter trained on with a few photos of its subject, and never made worse by that."""

from typing import NamedTuple

import torch
from torch import Tensor

from lorasynth.adapter import Factor, Factors, map_factors
from lorasynth.adapter.components import DENOISER, component_of
from lorasynth.base import MEASURED, BaseModel
from lorasynth.condition import SHOWN, ConditionEncoder, seen_in
from lorasynth.condition.similarity import likeness
from lorasynth.core.randomness import stream_seed
from lorasynth.engine import OnStep, Recipe, descend
from lorasynth.engine.fleet import LowRank
from lorasynth.images import Subject
from lorasynth.optimise.config import CheckConfig


class Refined(NamedTuple):
    """What became of an adapter.

    Attributes:
        factors: stacked over one adapter.
        steps: of training after which it was so; 0: it is the first one, unchanged.
        before: identity similarity of images made with the first one; None without an encoder.
        after: of images made with this one, of the same prompts from the same noise.
    """

    factors: Factors
    steps: int
    before: float | None = None
    after: float | None = None


def refine(
    base: BaseModel,
    recipe: Recipe,
    subject: Subject,
    first: Factors,
    *,
    encoder: ConditionEncoder | None = None,
    checks: CheckConfig | None = None,
    on_step: OnStep | None = None,
) -> Refined:
    """Train an adapter on; the factors of text encoders act, but stay as they are.

    With an encoder, images are made every few steps, and of all the adapters on the way the one
    whose images are most like the photos is kept.  Whether that one is better than the first is
    decided, and reported, by other images, which had no part in choosing it.

    Args:
        base: the frozen base model.
        recipe: how it is trained.
        subject: squares of the base model's size (`framed_subject`), with captions.
        first: factors stacked over one adapter.
        encoder: measures identity similarity; None: all steps are made, and nothing is measured.
        checks: how often it is measured, and when training ends early.
        on_step: called after each step.

    Raises:
        LayoutError: the adapter does not fit the base model.
        CollectionError: the subject has no photo, or not one caption for each.
    """
    whole = {name: component_of(name) == DENOISER for name in first}
    texts = {name: factor for name, factor in first.items() if not whole[name]}
    start = map_factors(Tensor.float, {n: f for n, f in first.items() if whole[n]})
    trainable = LowRank(base, recipe, [subject.id], start)
    watch = None if encoder is None else _Watch(base, subject, encoder, checks or CheckConfig())

    def after_step(step: int, losses: Tensor) -> bool:
        if on_step is not None:
            on_step(step, losses)
        if watch is None or step % watch.checks.every or step == recipe.steps:
            return False
        return watch.look(step, trainable.adapters(), attached=True)

    with base.attached(texts):
        if watch is not None:
            watch.look(0, start)
        ended = descend(base, [subject], trainable, on_step=after_step)
        if watch is None:
            return Refined(_joined(first, ended.factors), recipe.steps)
        if ended.losses.shape[1] == recipe.steps:
            watch.look(recipe.steps, ended.factors)
        before = watch.similarity("decide", start)
        after = watch.similarity("decide", watch.best)
    if watch.step == 0 or not after > before:
        return Refined(first, 0, before, before)
    return Refined(_joined(first, watch.best), watch.step, before, after)


def _joined(first: Factors, trained: Factors) -> Factors:
    """All modules in the order of the first adapter, the trained ones on the CPU."""
    return {
        name: Factor(trained[name].A.cpu(), trained[name].B.cpu()) if name in trained else factor
        for name, factor in first.items()
    }


class _Watch:
    """The adapter that was most like its subject so far."""

    def __init__(
        self, base: BaseModel, subject: Subject, encoder: ConditionEncoder, checks: CheckConfig
    ) -> None:
        self.base, self.encoder, self.checks = base, encoder, checks
        self.captions = [subject.captions[i % len(subject.captions)] for i in range(checks.images)]
        seen = seen_in(encoder, subject)
        self.photos = seen.embeddings[seen.presence >= SHOWN]
        self.best: Factors = {}
        self.step, self.highest, self._since = 0, -torch.inf, 0

    def look(self, step: int, factors: Factors, *, attached: bool = False) -> bool:
        """Keep the adapter if it is the best so far; whether none has been for long.

        With `attached` the base model has it already.
        """
        finite = all(bool(part.isfinite().all()) for factor in factors.values() for part in factor)
        here = self.similarity("choose", None if attached else factors) if finite else -torch.inf
        self._since += 1
        if here > self.highest or not self.best:
            self.step, self.highest, self._since = step, here, 0
            self.best = map_factors(torch.clone, factors)
        return self._since >= self.checks.patience

    def similarity(self, what: str, factors: Factors | None) -> float:
        """Mean cosine between the photos and images of their captions."""
        seeds = [stream_seed(0, "refine", what, i) for i in range(self.checks.images)]
        images = self.base.sample(self.captions, seeds, factors, MEASURED)
        return likeness(self.encoder.see(images).embeddings[None], self.photos[None]).item()
