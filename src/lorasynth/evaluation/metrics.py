"""What is measured of the images made for one subject; metrics of other packages join by name.

A package announces a metric of its own by entry point, and the benchmark then reports it::

    [project.entry-points."lorasynth.metrics"]
    my_metric = "my_package:make_metric"        # Judges, TestSubjects -> Metric or None
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lorasynth.condition import SHOWN, ConditionEncoder
from lorasynth.condition.contract import Seen, seen_in
from lorasynth.core.registry import Registry
from lorasynth.evaluation.cases import Case, TestSubjects
from lorasynth.evaluation.clip_score import ClipScore


@dataclass(frozen=True)
class Made:
    """The images that one contender made of one subject.

    Attributes:
        images: of the case's prompts; or, where `real`, the images that judge.
        case: the subject.
        real: the images are real ones, which are compared with one another.
    """

    images: UInt8[Tensor, "k h w 3"]
    case: Case
    real: bool = False
    _seen: dict[str, Seen] = field(default_factory=dict)

    def seen(self, encoder: ConditionEncoder) -> Seen:
        """What an encoder sees in the images, looked at once."""
        if encoder.fingerprint not in self._seen:
            self._seen[encoder.fingerprint] = (
                seen_in(encoder, self.case.judging) if self.real else encoder.see(self.images)
            )
        return self._seen[encoder.fingerprint]


class Metric(ABC):
    """Scores images: one value or several for each subject.

    Attributes:
        encoders: that look at the subjects' own images, before these are cut.
    """

    encoders: Sequence[ConditionEncoder] = ()

    @property
    @abstractmethod
    def identity(self) -> Any:
        """JSON values that decide the scores, beside the images."""

    @abstractmethod
    def __call__(self, made: Made) -> Mapping[str, float]:
        """Score one subject's images; the names are columns of the report."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What a command offers metrics to judge with.

    Attributes:
        encoders: that measure identity, the first one first.
        clip: CLIP model that scores prompts (folder or hub:owner/name); None without.
        attributes: what reads a domain's attributes off an image; None without.
    """

    encoders: Sequence[ConditionEncoder]
    clip: str | None = None
    attributes: str | None = None


#: Makes a metric; None where the judges or the subjects give nothing for it.
MetricFactory: TypeAlias = Callable[[Judges, TestSubjects], Metric | None]

METRICS: Registry[MetricFactory] = Registry("metric", "lorasynth.metrics")


def metrics_for(judges: Judges, subjects: TestSubjects) -> list[Metric]:
    """All metrics that apply, those of this package first."""
    names = sorted(METRICS.names(), key=lambda name: name not in METRICS.own)
    made = (METRICS.get(name)(judges, subjects) for name in names)
    return [one for one in made if one is not None]


class Identity(Metric):
    """Are the images of the subject, and are they more than copies of the reference?

    For each encoder, with unit embeddings g of k images made, t of j other images of the subject
    and r of the reference (the mean over several, on the sphere):

    * `identity_similarity`: mean of cos(g, t) over all pairs;
    * `reference_similarity`: mean of cos(g, r);
    * `copy_paste`: mean over all pairs of (θ(g, t) - θ(g, r)) / max(θ(t, r), 1e-6), where
      θ(a, b) = arccos cos(a, b): 1 where an image is the reference, -1 where it is the other
      image (M_CP of WithAnyone, arXiv 2510.14975, there with one t a subject).

    Of the first encoder also `diversity`, the mean of 1 - cosine over pairs of images made, and
    `shown`, the share of images in which it finds what it knows.  Where the images are real, pairs
    of one image with itself are left out.
    """

    def __init__(self, encoders: Sequence[ConditionEncoder]) -> None:
        self.encoders = encoders

    @property
    def identity(self) -> Any:
        """The encoders' weights."""
        return ["identity", *(one.fingerprint for one in self.encoders)]

    def __call__(self, made: Made) -> Mapping[str, float]:
        """Score by each encoder; those of the second have `_second` at the end of their names."""
        found: dict[str, float] = {}
        for number, encoder in enumerate(self.encoders):
            ending = ("", "_second", "_third", "_fourth")[min(number, 3)]
            scores = self._by(encoder, made)
            found |= {f"{name}{ending}": value for name, value in scores.items()}
        images, presence, _ = made.seen(self.encoders[0])
        found["diversity"] = float(mean_pairwise_distance(images[None]))
        found["shown"] = float((presence >= SHOWN).float().mean())
        return found

    def _by(self, encoder: ConditionEncoder, made: Made) -> dict[str, float]:
        g, t = made.seen(encoder).embeddings, _shown(encoder, made)
        r = functional.normalize(seen_in(encoder, made.case.reference).embeddings.mean(0), dim=0)
        pairs = g @ t.mT
        counted = ~torch.eye(len(g), len(t), dtype=torch.bool) if made.real else pairs == pairs
        nearer = _angle(pairs) - _angle(g @ r)[:, None]
        copied = nearer / _angle(t @ r).clamp(min=1e-6)
        return {
            "identity_similarity": float(pairs[counted].mean()),
            "reference_similarity": float((g @ r).mean()),
            "copy_paste": float(copied[counted].mean()),
        }


def _shown(encoder: ConditionEncoder, made: Made) -> Float[Tensor, "j m"]:
    """Embeddings of the images that judge; those in which the encoder finds nothing judge not."""
    seen = seen_in(encoder, made.case.judging)
    rows = (seen.presence >= SHOWN).nonzero().flatten()
    return seen.embeddings if made.real or not len(rows) else seen.embeddings[rows]


def _angle(cosine: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return torch.arccos(cosine.clamp(-1, 1))


def mean_pairwise_distance(features: Float[Tensor, "n k f"]) -> Float[Tensor, " n"]:
    """Mean of 1 - cosine over all pairs of each subject's k samples: 0 where all are one.

    Features of images give the diversity of images; centred adapter vectors give that of
    adapters synthesised from one condition.
    """
    unit = functional.normalize(features, dim=-1)
    k = features.shape[1]
    cosines = unit @ unit.mT
    return 1 - (cosines.sum(dim=(1, 2)) - k) / (k * (k - 1))


class Prompts(Metric):
    """`prompt_score`: CLIP's cosine between each image and its prompt (Hessel et al. 2021)."""

    def __init__(self, score: ClipScore) -> None:
        self.score = score

    @property
    def identity(self) -> Any:
        """CLIP's weights."""
        return ["clip", self.score.vision.fingerprint]

    def __call__(self, made: Made) -> Mapping[str, float]:
        """Score the images made; real ones have no prompts."""
        if made.real:
            return {}
        return {"prompt_score": float(self.score(made.images, made.case.prompts).mean())}


@METRICS.register("identity")
def _identity(judges: Judges, _: TestSubjects) -> Metric:
    return Identity(judges.encoders)


@METRICS.register("prompts")
def _prompts(judges: Judges, _: TestSubjects) -> Metric | None:
    return None if judges.clip is None else Prompts(ClipScore.load(judges.clip))
