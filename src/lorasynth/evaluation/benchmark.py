"""One benchmark: contenders make images of the same unseen subjects, prompts and noise.

Contenders stand in `contenders`, what is measured in `metrics`, who the subjects are in `cases`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lorasynth.adapter import Adapter, Factors, scaled, stack, unstack
from lorasynth.adapter.addition import add
from lorasynth.base import BaseModel
from lorasynth.condition import ConditionEncoder, framed_subject
from lorasynth.core.atomic import as_file_name
from lorasynth.core.cache import Cache
from lorasynth.core.errors import ConfigError
from lorasynth.core.progress import progress
from lorasynth.core.randomness import stream_seed
from lorasynth.evaluation.bootstrap import bootstrap
from lorasynth.evaluation.cases import Case, TestSubjects
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.evaluation.metrics import Made, Metric
from lorasynth.images.png import contact_sheet, write_synthetic

#: Stacked adapters of some cases, in their order; without any strength.
Adapters = Callable[[Sequence[Case]], Factors]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that gives an adapter, or none, for each subject.

    Attributes:
        name: in the table.
        adapters: makes them; None: the base model alone.
        strength: multiplies their ΔW.
        described: prompts say all that words can say of the subject.
        alone: subjects come one at a time, since their adapters may be of several layouts.
        styles: adapters that are added to each.
    """

    name: str
    adapters: Adapters | None = None
    strength: float = 1.0
    described: bool = False
    alone: bool = False
    styles: Sequence[Adapter] = ()

    def factors(self, cases: Sequence[Case], dtype: torch.dtype) -> Factors | None:
        """What is attached for some subjects, stacked; None for nothing."""
        own = None if self.adapters is None else scaled(self.adapters(cases), self.strength)
        if not self.styles:
            return own
        styles = [style.to(dtype).factors for style in self.styles]
        singles = [[]] * len(cases) if own is None else [[one] for one in unstack(own)]
        return stack([add([*single, *styles]) for single in singles])


@dataclass(frozen=True)
class Measured:
    """Figures by name, each with one value for every subject."""

    figures: Mapping[str, Float[Tensor, " n"]]

    def __getitem__(self, name: str) -> Float[Tensor, " n"]:
        return self.figures[name]

    def less(self, other: "Measured") -> "Measured":
        """The differences of common figures, subject by subject."""
        common = [name for name in self.figures if name in other.figures]
        return Measured({name: self[name] - other[name] for name in common})

    def intervals(self, *names: str) -> dict[str, dict[str, float]]:
        """Means over subjects with 95 % intervals, as JSON values; all figures by default.

        Figures that some subjects lack are left out, as similarities between a subject's real
        images where there is but one.
        """
        asked = [n for n in names or self.figures if n in self.figures]
        return {n: asdict(bootstrap(self[n])) for n in asked if not self[n].isnan().any()}


class Benchmark:
    """Test subjects with their images, prompts and noise; measures contenders on them.

    Args:
        base: makes the images.
        subjects: none of whom any contender has learned from (`core.learned.require_unseen`).
        metrics: measure them; the first scores identity.
        config: how many images, and how.
        conditioners: encoders that contenders show the references to.
        cache: keeps what was measured; None to keep nothing.

    Raises:
        ConfigError: there are fewer than two subjects.
        ImageError: an encoder finds nothing in a subject's images.
    """

    def __init__(
        self,
        base: BaseModel,
        subjects: TestSubjects,
        metrics: Sequence[Metric],
        config: BenchmarkConfig,
        *,
        conditioners: Sequence[ConditionEncoder] = (),
        cache: Cache | None = None,
    ) -> None:
        if len(subjects.ids) < 2:
            raise ConfigError(
                f"a benchmark needs at least two subjects, but got {len(subjects.ids)}"
            )
        self.base = base
        self.subjects = subjects
        self.metrics = metrics
        self.config = config
        self.conditioners = conditioners
        self.cache = cache

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides a contender's figures, beside its adapters and the subjects."""
        c, weight = self.config, self.base.guidance(self.config.image_guidance)
        return {
            "config": [c.images, c.seed, c.sampling_steps, weight, c.sampling_batch],
            "base": self.base.fingerprint,
            "metrics": [metric.identity for metric in self.metrics],
        }

    @cached_property
    def cases(self) -> Sequence[Case]:
        """All subjects, their images as squares, with what encoders saw before they were cut."""
        judges = [encoder for metric in self.metrics for encoder in metric.encoders]
        size = self.base.image_size
        cases = []
        with progress("read test subjects", len(self.subjects.ids)) as advance:
            for name in self.subjects.ids:
                case = self.subjects.case(name, self.config.images)
                reference = framed_subject(case.reference, size, [*self.conditioners, *judges])
                judging = framed_subject(case.judging, size, judges)
                cases.append(replace(case, reference=reference, judging=judging))
                advance()
        return cases

    def measure(self, contender: Contender) -> Measured:
        """Make every subject's images and score them, some subjects at a time."""
        scores: dict[str, list[Tensor]] = {}
        count, step = len(self.cases), 1 if contender.alone else self.config.fleet
        with progress(f"images: {contender.name}", count) as advance:
            for start in range(0, count, step):
                rows = range(start, min(start + step, count))
                for name, values in self._some(contender, rows).items():
                    scores.setdefault(name, []).append(values)
                advance(len(rows))
        return Measured({name: torch.cat(values) for name, values in scores.items()})

    def _some(self, contender: Contender, rows: range) -> Mapping[str, Tensor]:
        """Some subjects' scores; read from the cache if they were measured before."""
        cases = self.cases[rows.start : rows.stop]
        factors = contender.factors(cases, self.base.dtype)

        def make() -> Mapping[str, Tensor]:
            images = self._images(factors, rows, described=contender.described)
            return self.score(images.unflatten(0, (len(rows), -1)), rows).figures

        if self.cache is None:
            return make()
        identity = {
            "cases": [case.digest for case in cases],
            "first": rows.start,  # which decides the noise
            "described": contender.described,
            "adapters": _hash(factors),
            **self.identity,
        }
        return self.cache.tensors("measured", identity, make)

    def images(self, contender: Contender, rows: range) -> UInt8[Tensor, "nk h w 3"]:
        """The images that a contender makes of some subjects, subject after subject."""
        factors = contender.factors(self.cases[rows.start : rows.stop], self.base.dtype)
        return self._images(factors, rows, described=contender.described)

    def _images(
        self, factors: Factors | None, rows: range, *, described: bool
    ) -> UInt8[Tensor, "nk h w 3"]:
        cases, k = self.cases[rows.start : rows.stop], self.config.images
        prompts = [p for case in cases for p in (case.described if described else case.prompts)]
        numbers = range(rows.start * k, rows.stop * k)
        seeds = [stream_seed(self.config.seed, "evaluation", number) for number in numbers]
        return self.base.sample(prompts, seeds, factors, self.config.sampling)

    def score(self, images: UInt8[Tensor, "n k h w 3"], rows: range | None = None) -> Measured:
        """Score images of subjects, the first ones by default."""
        cases = self.cases[slice(rows.start, rows.stop) if rows else slice(len(images))]
        return self._scored([Made(own, case) for own, case in zip(images, cases, strict=True)])

    def real(self) -> Measured:
        """Score the judging images against one another: the highest to hope for."""
        return self._scored([Made(case.judging.images, case, real=True) for case in self.cases])

    def _scored(self, subjects: Sequence[Made]) -> Measured:
        scores: dict[str, list[float]] = {}
        for made in subjects:
            for metric in self.metrics:
                for name, value in metric(made).items():
                    scores.setdefault(name, []).append(value)
        return Measured({name: torch.tensor(values) for name, values in scores.items()})

    def save_sheets(self, contenders: Sequence[Contender], folder: Path, subjects: int) -> None:
        """Write a sheet of images for each of the first subjects: a row for each contender."""
        for row, case in enumerate(self.cases[:subjects]):
            made = [self.images(one, range(row, row + 1)) for one in contenders]
            names = ["reference", *(one.name for one in contenders)]
            blank = torch.full_like(made[0], 255)[1:]
            images = torch.cat([case.reference.images[:1], blank, *made])
            sheet = contact_sheet(images, self.config.images, names=names)
            path = folder / f"{as_file_name(case.id)}.png"
            write_synthetic(path, sheet, {"Description": "\n".join(case.prompts)})


def _hash(adapters: Factors | None) -> str:
    """Identifies stacked adapters by their bits."""
    digest = hashlib.sha256()
    for name, factor in sorted((adapters or {}).items()):
        digest.update(name.encode())
        for part in factor:
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
