"""An adapter trained on with a few photos of its subject, and never made worse by that."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lorasynth.adapter import Adapter, AdapterMetadata, Factors, map_factors, unstack
from lorasynth.adapter.components import DENOISER, component_of
from lorasynth.base import MEASURED, BaseModel
from lorasynth.condition import SHOWN, ConditionEncoder, framed_subject, seen_in
from lorasynth.condition.similarity import likeness
from lorasynth.core.errors import LayoutError
from lorasynth.core.randomness import stream_seed, torch_stream
from lorasynth.engine import OnStep, Recipe, descend
from lorasynth.engine.fleet import LowRank
from lorasynth.images import PORTRAIT, Subject
from lorasynth.optimise.config import CheckConfig

_COLOURS = "red orange yellow green teal blue purple pink white gray black"
#: What varies between photos of a subject, in words that most base models know.
VARIES = (
    [f"{colour} background" for colour in _COLOURS.split()],
    [f"{c} {what}" for c in _COLOURS.split() for what in ("t-shirt", "blazer", "hoodie")],
    ["smiling", "serious", "shouting"],
)
#: Noise and times by which phrases are compared.
_DRAWS = 4


class Refined(NamedTuple):
    """An adapter, the step after which it was so (0: the first one), and, with an encoder, identity
    similarities of images made with the first one and with it, from the same noise.
    """  # noqa: D205

    factors: Factors
    step: int
    before: float | None = None
    after: float | None = None

    def stated(self, metadata: AdapterMetadata, encoder: str) -> AdapterMetadata:
        """The metadata of what it was, with what was done, measured by the encoder of that name."""
        extra, facts = metadata.extra, dict[str, str]()
        if self.step:
            facts["optimised"] = f"refine {self.step}"
            # Its ΔW is no longer a multiple of what was decoded, nor as it was measured before.
            gone = ("strength", "similarity_before", "similarity_after", "similarity_encoder")
            extra = {name: text for name, text in extra.items() if name not in gone}
        if self.before is not None:
            facts |= {"similarity_before": f"{self.before:.4f}", "similarity_encoder": encoder}
            facts["similarity_after"] = f"{self.after:.4f}"
        return replace(metadata, extra=extra | facts)


class Watching(NamedTuple):
    """The encoder that compares images with the photos, how often, and when training ends early."""

    encoder: ConditionEncoder
    checks: CheckConfig = CheckConfig()


def refine(
    base: BaseModel,
    recipe: Recipe,
    subject: Subject,
    first: Factors,
    watching: Watching | None = None,
    on_step: OnStep = lambda *_: None,
) -> Refined:
    """Train an adapter on; what it has for text encoders acts, but stays as it is.

    Where that is watched, images are made every few steps, and of all adapters on the way the one
    whose images are most like the photos is kept.  Whether it is better than the first is decided,
    and reported, by other images, which had no part in choosing it.

    Args:
        base: the frozen base model.
        recipe: how it is trained.
        subject: squares of the base model's size (`framed_subject`), with captions.
        first: stacked over one adapter.
        watching: measures identity similarity; None: all steps are made.
        on_step: called after each step.

    Raises:
        LayoutError: the adapter does not fit the base model, or changes text encoders alone.
    """
    texts = {name: factor for name, factor in first.items() if component_of(name) != DENOISER}
    start = map_factors(Tensor.float, {n: f for n, f in first.items() if n not in texts})
    if not start:
        raise LayoutError("an adapter to refine must change the denoiser, but changes texts alone")
    trainable = LowRank(base, recipe, [subject.id], start)
    watch = None if watching is None else _Watch(base, subject, watching)

    def after_step(step: int, losses: Tensor) -> bool:
        on_step(step, losses)
        if watch is None or step % watch.checks.every or step == recipe.steps:
            return False
        return watch.look(step, trainable.adapters(), attached=True)

    with base.attached(texts):
        if watch is not None:
            watch.look(0, start)
        ended = descend(base, [subject], trainable, on_step=after_step)
        if watch is None:
            return Refined({**first, **ended.factors}, recipe.steps)
        if ended.losses.shape[1] == recipe.steps:
            watch.look(recipe.steps, ended.factors)
        before, after = (watch.similarity(watch.checks.images, one) for one in (start, watch.best))
    if watch.step == 0 or not after > before:
        return Refined(first, 0, before, before)
    return Refined({**first, **watch.best}, watch.step, before, after)


def refined(
    base: BaseModel,
    adapter: Adapter,
    subject: Subject,
    recipe: Recipe,
    encoder: ConditionEncoder,
    on_step: OnStep = lambda *_: None,
) -> Adapter:
    """An adapter trained on with whole photos, as `lorasynth refine` does by default.

    Args:
        base: the frozen base model.
        adapter: whose metadata then says what was done.
        subject: photos of any size, and captions.
        recipe: how it is trained.
        encoder: finds the subject, and measures identity similarity.
        on_step: called after each step.

    Raises:
        ImageError: the photos do not show what the encoder knows.
        LayoutError: see `refine`.
    """
    looking = [encoder] if encoder.looks else []
    first = map_factors(lambda part: part[None].float(), adapter.factors)
    subject = captioned(base, framed_subject(subject, base.image_size, looking), first)
    watching = Watching(encoder) if encoder.looks else None
    made = refine(base, recipe, subject, first, watching, on_step)
    [factors] = unstack(map_factors(lambda part: part.detach().cpu(), made.factors))
    return replace(adapter, factors=factors, metadata=made.stated(adapter.metadata, encoder.name))


class _Watch:
    """The adapter whose images were most like the photos so far."""

    def __init__(self, base: BaseModel, subject: Subject, watching: Watching) -> None:
        self.base, self.captions = base, subject.captions
        self.encoder, self.checks = watching
        seen = seen_in(self.encoder, subject)
        self.photos = seen.embeddings[seen.presence >= SHOWN]
        self.best: Factors = {}
        self.step, self.highest, self._since = 0, -torch.inf, 0

    def look(self, step: int, factors: Factors, *, attached: bool = False) -> bool:
        """Keep the adapter, which may be attached, if it is the best; True if none was for long."""
        finite = all(bool(part.isfinite().all()) for factor in factors.values() for part in factor)
        here = self.similarity(0, None if attached else factors) if finite else -torch.inf
        self._since += 1
        if here > self.highest or not self.best:
            self.step, self.highest, self._since = step, here, 0
            self.best = map_factors(torch.clone, factors)
        return self._since >= self.checks.patience

    def similarity(self, first: int, factors: Factors | None) -> float:
        """Mean cosine between the photos and images with numbers from `first` on.

        They show other scenes than the photos, so that copies of these do not count; of captions
        that a user gave they show what these say.
        """
        prompts, numbers = [], range(first, first + self.checks.images)
        for i in numbers:
            caption = self.captions[i % len(self.captions)]
            scene = [PORTRAIT, *(phrases[5 * i % len(phrases)] for phrases in VARIES)]
            prompts.append(", ".join(scene) if caption.startswith(PORTRAIT) else caption)
        seeds = [stream_seed(0, "refine", i) for i in numbers]
        images = self.base.sample(prompts, seeds, factors, MEASURED)
        made = self.encoder.see(images).embeddings
        return likeness(made[None], self.photos[None]).item()


@torch.no_grad()
def captioned(
    base: BaseModel,
    subject: Subject,
    first: Factors,
    choices: Sequence[Sequence[str]] = VARIES,
) -> Subject:
    """Say in captions that say nothing what photos happen to show, so that no adapter learns it.

    Of each choice that phrase is added, if any, with which the base model and the adapter denoise
    the photo best (Li et al. 2023, https://arxiv.org/abs/2303.16203).
    """
    stream, captions = torch_stream(0, "captions"), list(subject.captions)
    noise = torch.randn(_DRAWS, *base.latent_shape, generator=stream).to(base.device, base.dtype)
    times = base.draw_times((_DRAWS,), stream).to(base.device)
    with base.attached(first):
        for row, latent in enumerate(base.encode_images(subject.images)):
            noisy, target = base.add_noise(latent.expand_as(noise), noise, times)

            def error(said: str, noisy: Tensor = noisy, target: Tensor = target) -> float:
                predicted = base.denoise(noisy, times, base.encode_prompts([said] * _DRAWS))
                return (predicted.float() - target.float()).square().mean().item()

            for phrases in choices if captions[row] == PORTRAIT else ():
                known = captions[row]
                captions[row] = min([known, *(f"{known}, {one}" for one in phrases)], key=error)
    return replace(subject, captions=captions)
