"""A trial: unseen subjects, and what the images made with their adapters are worth.

For each subject one image is the condition, eight others are the references that judge, and ten
more train the `trained` adapter.  Nothing of a test subject, nor its combination of attributes, was
seen by base model, encoders, judge, library, codec or hypernetwork.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lorasynth.adapter import Factors, map_factors
from lorasynth.avatars import captions
from lorasynth.avatars.attributes import attribute_accuracy, prompt_following
from lorasynth.avatars.drawing import AvatarSubjects, Split
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.pool import labels_of
from lorasynth.base import MEASURED, BaseModel, SamplingConfig
from lorasynth.collect import AdapterPredictor as Anchor
from lorasynth.collect import CollectConfig, Worker, collect
from lorasynth.condition import ConditionEncoder
from lorasynth.condition.similarity import likeness, self_likeness
from lorasynth.core.config import to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import progress
from lorasynth.core.randomness import stream_seed
from lorasynth.core.weights import fingerprint, kept_tensors
from lorasynth.engine.recipe import Recipe
from lorasynth.evaluation.bootstrap import bootstrap
from lorasynth.evaluation.diversity import mean_pairwise_distance
from lorasynth.images import Subject
from lorasynth.library import Library


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What makes images, and what judges them.

    Attributes:
        base: the base model.
        encoder: the first to measure likeness.
        second: an encoder trained apart, which measures and nothing else.
        judge: reads attributes.
        condition: whose embeddings are the conditions; None for the first encoder.
    """

    base: BaseModel
    encoder: ConditionEncoder
    second: ConditionEncoder
    judge: AttributeJudge
    condition: ConditionEncoder | None = None

    @property
    def conditioner(self) -> ConditionEncoder:
        """The encoder that makes the conditions."""
        return self.condition or self.encoder

    @property
    def fingerprints(self) -> list[str]:
        """Of the base model and of all that judges its images."""
        weights = [one.fingerprint for one in (self.base, self.encoder, self.second)]
        return [*weights, fingerprint(self.judge)]


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Which subjects are tried, and how.

    Attributes:
        subjects: how many are drawn from the split.
        seed: draws the subjects, their images, the prompts and the noise.
        split: `test`, or `validation` for choices.
        images: made with each adapter; as many references.
        training_images: that a `trained` adapter learns from.
        sampling: how images are made.
        fleet: adapters trained at once.
    """

    subjects: int = 100
    seed: int = 0
    split: Split = "test"
    images: int = 8
    training_images: int = 10
    sampling: SamplingConfig = MEASURED
    fleet: int = 25

    def __post_init__(self) -> None:
        if self.subjects < 2 or self.images < 2:
            raise ConfigError(
                "a trial needs at least two subjects with two images each, but got "
                f"--subjects {self.subjects} and {self.images} images"
            )


#: Figures of `Measured` that say how like their subjects adapters are.
COMPARED = ("likeness", "likeness_second", "attribute_accuracy")


@dataclass(frozen=True)
class Measured:
    """What one method's images are worth, one number per subject."""

    likeness: Float[Tensor, " n"]
    likeness_second: Float[Tensor, " n"]
    attribute_accuracy: Float[Tensor, " n"]
    prompt_following: Float[Tensor, " n"]
    diversity: Float[Tensor, " n"]

    @classmethod
    def cat(cls, parts: Sequence["Measured"]) -> "Measured":
        """Of some subjects and then of others."""
        return cls(*(torch.cat(figures) for figures in zip(*map(astuple, parts), strict=True)))

    def less(self, other: "Measured") -> "Measured":
        """The differences, subject by subject."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Measured(*(one - another for one, another in pairs))

    def intervals(self, *figures: str) -> dict[str, dict[str, float]]:
        """Means over subjects with their intervals, as JSON values; all figures by default."""
        return {name: asdict(bootstrap(getattr(self, name))) for name in figures or vars(self)}


class Trial:
    """Unseen subjects with their images, prompts and noise; measures adapters on them.

    Args:
        instruments: what makes images and what judges them.
        config: which subjects, and how many images.
        kept: folder for what was measured, so that nothing is measured twice; None to keep nothing.
    """

    def __init__(
        self, instruments: Instruments, config: TrialConfig, kept: Path | None = None
    ) -> None:
        self.instruments = instruments
        self.config = config
        self.kept = kept
        self.subjects = AvatarSubjects(
            split=config.split,
            count=config.subjects,
            images=config.training_images,
            size=instruments.base.image_size,
            seed=config.seed,
            series="evaluation",
        )
        self.judged = replace(self.subjects, images=config.images)
        ids = self.subjects.ids
        self.conditions = instruments.conditioner.embed(self.condition_images())
        references = torch.cat([self.judged.draw(i, "reference") for i in ids])
        self.references = references
        shape = (config.subjects, config.images)
        self.first = instruments.encoder.embed(references).unflatten(0, shape)
        self.second = instruments.second.embed(references).unflatten(0, shape)

    def condition_images(self) -> UInt8[Tensor, "n h w 3"]:
        """The one image of each subject that steers synthesis."""
        one = replace(self.subjects, images=1)
        return torch.cat([one.draw(i, "condition") for i in one.ids])

    def people(self, images: int) -> list[Subject]:
        """Each with the one image that is the condition, or with some of those to train on."""
        if images == 1:
            one = replace(self.subjects, images=1)
            return [one.load(name, "condition") for name in one.ids]
        several = replace(self.subjects, images=min(images, self.subjects.images))
        return [several.load(name) for name in several.ids]

    def labels(self, purpose: str, rows: range) -> Int64[Tensor, "n k attributes"]:
        """What some subjects' images of a purpose should show."""
        asked = [
            [
                labels_of(self.subjects.identity(i), scene)
                for scene in self.judged.scenes(i, purpose)
            ]
            for i in self._ids(rows)
        ]
        return torch.tensor(asked)

    def prompts(self, rows: range | None = None, *, described: bool = False) -> list[str]:
        """One per image, subject after subject; `described` says all that words can say."""
        texts = []
        for name in self._ids(rows or self._all):
            identity = self.subjects.identity(name)
            for scene in self.judged.scenes(name, "evaluation"):
                said = captions.described(identity, scene) if described else captions.prompt(scene)
                texts.append(said)
        return texts

    def tried(self, title: str, adapters: Factors | None, *, described: bool = False) -> Measured:
        """Make every subject's images with its adapter and measure them, some at a time.

        Args:
            title: said while it is done.
            adapters: stacked over the subjects; None for the base model alone.
            described: prompts say all that words can say.
        """
        parts = []
        with progress(f"images: {title}", self.config.subjects) as advance:
            for start in range(0, self.config.subjects, self.config.fleet):
                rows = range(start, min(start + self.config.fleet, self.config.subjects))
                some = None if adapters is None else _rows_of(adapters, rows)
                parts.append(self._tried(rows, some, described=described))
                advance(len(rows))
        return Measured.cat(parts)

    def _tried(self, rows: range, adapters: Factors | None, *, described: bool) -> Measured:
        """Some subjects' images, measured; read from what is kept if they were before."""

        def measured() -> dict[str, Tensor]:
            images = self.images(adapters, rows, described=described)
            return vars(self._measure(images, "evaluation", rows))

        if self.kept is None:
            return Measured(**measured())
        asked = [self._identity, rows.start, described, _hash(adapters)]
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]
        return Measured(**kept_tensors(self.kept / f"{name}.safetensors", measured))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that decides what images are worth, beside adapters and prompts."""
        return {**to_dict(self.config), "parts": self.instruments.fingerprints}

    def images(
        self, adapters: Factors | None, rows: range | None = None, *, described: bool = False
    ) -> UInt8[Tensor, "nk h w 3"]:
        """Make subjects' images with the same prompts and noise for all methods.

        Args:
            adapters: stacked over these subjects; None for the base model alone.
            rows: which subjects; None for all.
            described: prompts say all that words can say.
        """
        rows = rows or self._all
        prompts, seeds = self.prompts(rows, described=described), self._seeds(rows)
        return self.instruments.base.sample(prompts, seeds, adapters, self.config.sampling)

    @property
    def _all(self) -> range:
        return range(self.config.subjects)

    def _ids(self, rows: range) -> Sequence[str]:
        return self.subjects.ids[rows.start : rows.stop]

    def images_within(
        self, contexts: Iterable[AbstractContextManager[None]]
    ) -> UInt8[Tensor, "nk h w 3"]:
        """Make the first subjects' images, those of each inside a context of its own."""
        images = []
        for i, context in enumerate(contexts):
            with context:
                images.append(self.images(None, range(i, i + 1)))
        return torch.cat(images)

    def _seeds(self, rows: range) -> list[int]:
        """Of the noise of every image, whose number among those of all subjects names it."""
        numbers = range(rows.start * self.config.images, rows.stop * self.config.images)
        return [stream_seed(self.config.seed, "evaluation", number) for number in numbers]

    def measure(self, images: UInt8[Tensor, "nk h w 3"]) -> Measured:
        """Measure one method's images."""
        return self._measure(images, "evaluation", self._all)

    def real(self) -> Measured:
        """Measure the reference images against one another: the highest to hope for."""
        measured = self._measure(self.references, "reference", self._all)
        return replace(
            measured,
            likeness=self_likeness(self.first),
            likeness_second=self_likeness(self.second),
        )

    def _measure(self, images: UInt8[Tensor, "nk h w 3"], purpose: str, rows: range) -> Measured:
        shape, some = (len(rows), self.config.images), slice(rows.start, rows.stop)
        instruments, asked = self.instruments, self.labels(purpose, rows)
        judged = instruments.judge.labels(images).unflatten(0, shape)
        first = instruments.encoder.embed(images).unflatten(0, shape)
        second = instruments.second.embed(images).unflatten(0, shape)
        features = instruments.judge.features(images).unflatten(0, shape)
        return Measured(
            likeness(first, self.first[some]),
            likeness(second, self.second[some]),
            attribute_accuracy(judged, asked),
            prompt_following(judged, asked),
            mean_pairwise_distance(features),
        )

    def trained(self, recipe: Recipe, anchor: Anchor | None, cache: Path) -> Factors:
        """The adapters trained on other images of each subject: the ceiling.

        An anchor predicts them from these images.

        They are kept in the cache, so a second trial of the same subjects does not train again.
        """
        config, base = self.config, self.instruments.base
        name = f"{config.split}-{config.seed}-{config.training_images}"
        start = "alone" if anchor is None else anchor.fingerprint
        path = cache / f"{base.fingerprint}-{recipe.fingerprint}-{start}" / name
        worker, fleets = Worker(base=base, init_from=anchor), CollectConfig(fleet=config.fleet)
        collect(worker, self.subjects, path, recipe, fleets)
        library = Library.open(path)
        return library.factors(library.rows_of(self.subjects.ids))


def _rows_of(adapters: Factors, rows: range) -> Factors:
    return map_factors(lambda part: part[rows.start : rows.stop], adapters)


def _hash(adapters: Factors | None) -> str:
    """Identifies stacked adapters by their bits."""
    digest = hashlib.sha256()
    for name, factor in sorted((adapters or {}).items()):
        digest.update(name.encode())
        for part in factor:
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
