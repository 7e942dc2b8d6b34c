"""The evaluation: every method on the same unseen subjects, prompts and seeds.

For each subject of the test split: one picture is the condition, eight others are the references
that judge, and ten more train the `trained` adapter.  Nothing of a test subject, nor its
combination of attributes, was seen by base model, encoders, judge, library, codec or hypernetwork.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lorasynth.adapter import Factors, cosines
from lorasynth.base import SamplingConfig
from lorasynth.collect import collect
from lorasynth.config import to_dict
from lorasynth.errors import ConfigError
from lorasynth.experiments.bundle import Bundle
from lorasynth.experiments.methods import Diffusion, methods
from lorasynth.library import Library
from lorasynth.measure.attributes import attribute_accuracy, prompt_following
from lorasynth.measure.bootstrap import bootstrap
from lorasynth.measure.diversity import mean_pairwise_distance
from lorasynth.measure.likeness import likeness, self_likeness
from lorasynth.pictures import AvatarSubjects, captions
from lorasynth.pictures.avatars import Split
from lorasynth.pictures.pool import labels_of
from lorasynth.progress import progress
from lorasynth.randomness import stream_seed


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is evaluated.

    Attributes:
        subjects: how many are drawn from the split.
        seed: draws the subjects, their pictures, the prompts and the noise.
        split: `test`, or `validation` for choices.
        pictures: made with each adapter; as many references.
        training_pictures: that a `trained` adapter learns from.
        resamples: adapters synthesised from one condition to measure their diversity.
        sampling: how pictures are made.
        fleet: adapters trained at once.
    """

    subjects: int = 100
    seed: int = 0
    split: Split = "test"
    pictures: int = 8
    training_pictures: int = 10
    resamples: int = 4
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    fleet: int = 25

    def __post_init__(self) -> None:
        if self.subjects < 2 or self.pictures < 2:
            raise ConfigError(
                "an evaluation needs at least two subjects with two pictures each, but got "
                f"--subjects {self.subjects} and {self.pictures} pictures"
            )


@dataclass(frozen=True)
class Measured:
    """What one method's pictures are worth, one number per subject."""

    likeness: Float[Tensor, " n"]
    likeness_second: Float[Tensor, " n"]
    attribute_accuracy: Float[Tensor, " n"]
    prompt_following: Float[Tensor, " n"]
    diversity: Float[Tensor, " n"]


class Evaluation:
    """One evaluation: the subjects with their pictures, and the measuring of methods on them."""

    def __init__(self, bundle: Bundle, config: EvaluationConfig, cache: Path) -> None:
        self.bundle = bundle
        self.config = config
        self.cache = cache
        count = config.training_pictures
        self.subjects = AvatarSubjects(
            split=config.split,
            count=config.subjects,
            pictures=count,
            size=bundle.base.picture_size,
            seed=config.seed,
            series="evaluation",
        )
        self.judged = replace(self.subjects, pictures=config.pictures)
        ids = self.subjects.ids
        encoder = bundle.synthesizer.encoder
        self.conditions = encoder.embed(self.condition_pictures())
        references = torch.cat([self.judged.draw(i, "reference") for i in ids])
        self.references = references
        shape = (config.subjects, config.pictures)
        self.first = encoder.embed(references).unflatten(0, shape)
        self.second = bundle.second.embed(references).unflatten(0, shape)

    def condition_pictures(self) -> UInt8[Tensor, "n h w 3"]:
        """The one picture of each subject that steers synthesis."""
        one = replace(self.subjects, pictures=1)
        return torch.cat([one.draw(i, "condition") for i in one.ids])

    def labels(self, purpose: str) -> Int64[Tensor, "n k attributes"]:
        """What the pictures of a purpose should show."""
        rows = [
            [
                labels_of(self.subjects.identity(i), scene)
                for scene in self.judged.scenes(i, purpose)
            ]
            for i in self.subjects.ids
        ]
        return torch.tensor(rows)

    def prompts(self, *, described: bool = False) -> list[str]:
        """One per picture, subject after subject; `described` says all that words can say."""
        texts = []
        for name in self.subjects.ids:
            identity = self.subjects.identity(name)
            for scene in self.judged.scenes(name, "evaluation"):
                said = captions.described(identity, scene) if described else captions.prompt(scene)
                texts.append(said)
        return texts

    def pictures(
        self, adapters: Factors | None, *, described: bool = False
    ) -> UInt8[Tensor, "nk h w 3"]:
        """Make every subject's pictures with the same prompts and noise for all methods."""
        prompts = self.prompts(described=described)
        seeds = [stream_seed(self.config.seed, "evaluation", i) for i in range(len(prompts))]
        return self.bundle.base.sample(prompts, seeds, adapters, self.config.sampling)

    def measure(self, pictures: UInt8[Tensor, "nk h w 3"]) -> Measured:
        """Measure one method's pictures."""
        return self._measure(pictures, "evaluation")

    def measure_real(self) -> Measured:
        """Measure the reference pictures against one another: the highest to hope for."""
        measured = self._measure(self.references, "reference")
        return replace(
            measured,
            likeness=self_likeness(self.first),
            likeness_second=self_likeness(self.second),
        )

    def _measure(self, pictures: UInt8[Tensor, "nk h w 3"], purpose: str) -> Measured:
        shape = (self.config.subjects, self.config.pictures)
        bundle, asked = self.bundle, self.labels(purpose)
        judged = bundle.judge.labels(pictures).unflatten(0, shape)
        first = bundle.synthesizer.encoder.embed(pictures).unflatten(0, shape)
        second = bundle.second.embed(pictures).unflatten(0, shape)
        features = bundle.judge.features(pictures).unflatten(0, shape)
        return Measured(
            likeness(first, self.first),
            likeness(second, self.second),
            attribute_accuracy(judged, asked),
            prompt_following(judged, asked),
            mean_pairwise_distance(features),
        )

    def trained(self) -> Factors:
        """The adapters trained on ten other pictures of each subject: the ceiling.

        They are kept in the cache, so a second evaluation does not train again.
        """
        bundle = self.bundle
        key = f"{bundle.base.fingerprint}-{bundle.recipe.fingerprint}"
        name = f"{self.config.split}-{self.config.seed}-{self.config.training_pictures}"
        path = self.cache / key / name
        collect(bundle.base, self.subjects, path, bundle.recipe, fleet_size=self.config.fleet)
        library = Library.open(path)
        return library.factors(library.rows_of(self.subjects.ids))


def evaluate(bundle: Bundle, config: EvaluationConfig, cache: Path) -> dict[str, Any]:
    """Evaluate every method; returns the JSON object that `lorasynth evaluate` writes.

    Args:
        bundle: the loaded parts.
        config: subjects, seed and sampling.
        cache: folder for trained adapters.
    """
    run = Evaluation(bundle, config, cache)
    adapters: dict[str, Factors | None] = {"base": None, "described": None}
    for name, method in methods(bundle.synthesizer, bundle.library, config.seed).items():
        adapters[name] = method(run.conditions, run.subjects.ids)
    adapters["trained"] = run.trained()
    measured = {}
    with progress("evaluate", len(adapters)) as advance:
        for name, factors in adapters.items():
            pictures = run.pictures(factors, described=name == "described")
            measured[name] = run.measure(pictures)
            advance(note=name)
    measured["real"] = run.measure_real()
    return {
        "config": to_dict(config),
        "base_fingerprint": bundle.base.fingerprint,
        "library": len(bundle.library.ids),
        "rows": [_row(name, values) for name, values in measured.items()],
        "paired": _paired(measured),
        "memorisation": _memorisation(bundle, adapters),
        "adapter_diversity": _adapter_diversity(run),
    }


def _row(name: str, measured: Measured) -> dict[str, Any]:
    interval = bootstrap(measured.likeness)
    second = bootstrap(measured.likeness_second)
    return {
        "method": name,
        "likeness": interval.mean,
        "lo": interval.lo,
        "hi": interval.hi,
        "likeness_second": second.mean,
        "lo_second": second.lo,
        "hi_second": second.hi,
        "attribute_accuracy": measured.attribute_accuracy.mean().item(),
        "prompt_following": measured.prompt_following.mean().item(),
        "diversity": measured.diversity.mean().item(),
        "n": len(measured.likeness),
    }


def _paired(measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """How much likeness diffusion has more than each other method, subject by subject."""
    ours = measured["diffusion"]
    return [
        {
            "method": f"diffusion - {name}",
            "likeness": asdict(bootstrap(ours.likeness - other.likeness)),
            "likeness_second": asdict(bootstrap(ours.likeness_second - other.likeness_second)),
        }
        for name, other in measured.items()
        if name not in ("diffusion", "real")
    ]


def _memorisation(bundle: Bundle, adapters: Mapping[str, Factors | None]) -> dict[str, float]:
    """Mean cosine of ΔW to the nearest adapter of the library."""
    synthesizer = bundle.synthesizer
    known = synthesizer.layout.unflatten(synthesizer.codec.decode(bundle.library.latents))
    nearest = {}
    for name in ("diffusion", "trained"):
        factors = adapters[name]
        assert factors is not None
        nearest[name] = cosines(factors, known).amax(dim=1).mean().item()
    return nearest


def _adapter_diversity(run: Evaluation) -> dict[str, float]:
    """How much adapters differ that were synthesised from one condition with other noise."""
    vectors = []
    for seed in range(run.config.resamples):
        factors = Diffusion(run.bundle.synthesizer, seed)(run.conditions, run.subjects.ids)
        vectors.append(run.bundle.synthesizer.layout.flatten(factors))
    stacked = torch.stack(vectors, dim=1)
    centred = stacked - stacked.mean(dim=(0, 1))
    return {"mean_pairwise_distance": mean_pairwise_distance(centred).mean().item()}
