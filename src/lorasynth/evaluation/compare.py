"""Adapters of any origin in one table, on real images: ours, peers', trained ones.

The first image of each subject is the condition of what is synthesised; the others judge.  Where
a subject has one image only, it judges too, which flatters every method that has seen it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.adapter import Adapter, Factors, map_factors
from lorasynth.adapter.addition import add
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.base.compatibility import require_fits
from lorasynth.condition import ConditionEncoder, subject_conditions
from lorasynth.condition.similarity import likeness
from lorasynth.core.atomic import as_file_name, write_json
from lorasynth.core.config import to_dict
from lorasynth.core.errors import ConfigError
from lorasynth.core.figures import bars, save_figure
from lorasynth.core.progress import progress
from lorasynth.core.randomness import stream_seed
from lorasynth.evaluation.bootstrap import bootstrap
from lorasynth.evaluation.diversity import mean_pairwise_distance
from lorasynth.images import Subject
from lorasynth.images.contract import PORTRAIT
from lorasynth.images.png import contact_sheet, write_synthetic

#: Images and their prompts to a score of each, such as CLIP's.
Score = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How images are made.

    Attributes:
        prompts: each is asked of each adapter.
        images: of each prompt.
        strengths: that every adapter is tried with; 1 is as it was trained.
        seed: of the noise, which is the same for all adapters.
        sampling: how.
    """

    prompts: tuple[str, ...] = (PORTRAIT,)
    images: int = 4
    strengths: tuple[float, ...] = (1.0,)
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if not self.prompts or not self.strengths or self.images * len(self.prompts) < 2:
            raise ConfigError(
                "a comparison needs a prompt, a strength and two images of each subject, but got "
                f"{len(self.prompts)} prompts, {len(self.strengths)} strengths and {self.images} "
                "images of each prompt"
            )


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One method.

    Attributes:
        name: in the table.
        adapters: of each subject, by its id; None: the base model alone.
        besides: adapters that are added to each, such as a style.
    """

    name: str
    adapters: Mapping[str, Adapter] | None
    besides: Sequence[Adapter] = ()

    def factors(self, subject: str, strength: float, base: BaseModel) -> Factors | None:
        """What is attached for a subject: a stack of one; None for nothing."""
        own = [] if self.adapters is None else [self.adapters[subject].scaled(strength)]
        parts = [one.to(base.dtype).factors for one in (*own, *self.besides)]
        return map_factors(lambda part: part[None], add(parts)) if parts else None


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What measures images.

    Attributes:
        encoder: the first to measure likeness.
        second: another, trained apart; None without one.
        prompts: scores what images show against their prompts; None without.
    """

    encoder: ConditionEncoder
    second: ConditionEncoder | None = None
    prompts: Score | None = None

    @property
    def encoders(self) -> list[ConditionEncoder]:
        """Those that there are, the first one first."""
        return [one for one in (self.encoder, self.second) if one is not None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is found.

    Attributes:
        report: JSON values.
        images: subject -> contender and strength -> its images.
    """

    report: dict[str, Any]
    images: dict[str, dict[str, UInt8[Tensor, "k h w 3"]]]

    def save(self, folder: Path) -> None:
        """Write table.json, the curves as strengths.png, and a sheet of images per subject."""
        write_json(folder / "table.json", self.report)
        save_figure(draw_strengths(self.report), folder / "strengths.png")
        for subject, made in self.images.items():
            each = len(next(iter(made.values())))
            sheet = contact_sheet(torch.cat(list(made.values())), each, names=list(made))
            write_synthetic(
                folder / f"{as_file_name(subject)}.png", sheet, {"Description": "\n".join(made)}
            )


def compare(
    base: BaseModel,
    judges: Judges,
    subjects: Sequence[Subject],
    contenders: Sequence[Contender],
    config: CompareConfig,
) -> Comparison:
    """Measure every contender at every strength on every subject.

    Raises:
        ConfigError: a contender lacks a subject's adapter.
        LayoutError: an adapter does not fit the base model.
        ImageError: an encoder finds no face in a subject's images.
    """
    _require_all(base, contenders, subjects)
    references = [_references(judges, subject) for subject in subjects]
    tried = [(one, s) for one in contenders for s in _strengths(one, config)]
    images: dict[str, dict[str, Tensor]] = {subject.id: {} for subject in subjects}
    rows = {}
    with progress("compare", len(tried) * len(subjects)) as advance:
        for contender, strength in tried:
            label = _label(contender, strength, config)
            found = []
            for subject, real in zip(subjects, references, strict=True):
                made = _make(base, contender.factors(subject.id, strength, base), subject, config)
                images[subject.id][label] = made
                found.append(_measure(judges, made, real, config))
                advance(note=label)
            values = {name: torch.tensor([one[name] for one in found]) for name in found[0]}
            rows[label] = {"contender": contender.name, "strength": strength, "values": values}
    first, *_ = rows.values()
    report = {
        "config": to_dict(config),
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "encoders": [one.name for one in judges.encoders],
        "subjects": [subject.id for subject in subjects],
        "rows": [_row(row, first) for row in rows.values()],
    }
    return Comparison(report=report, images=images)


def _references(judges: Judges, subject: Subject) -> list[Float[Tensor, "j _"]]:
    """What each encoder sees in the images that judge: all but the first, if there are others."""
    if len(subject.photos) > 1:
        subject = replace(
            subject, photos=subject.photos[1:], captions=subject.captions[1:], seen={}
        )
    return [subject_conditions(encoder, subject) for encoder in judges.encoders]


def _strengths(contender: Contender, config: CompareConfig) -> tuple[float, ...]:
    return (1.0,) if contender.adapters is None else config.strengths


def _label(contender: Contender, strength: float, config: CompareConfig) -> str:
    several = len(_strengths(contender, config)) > 1
    return f"{contender.name} at {strength:g}" if several else contender.name


def _require_all(
    base: BaseModel, contenders: Sequence[Contender], subjects: Sequence[Subject]
) -> None:
    """Refuse, before images are made, what would stop on the way."""
    for contender in contenders:
        for subject in subjects:
            if contender.adapters is not None and subject.id not in contender.adapters:
                raise ConfigError(
                    f"every contender needs an adapter for every subject, but {contender.name} has "
                    f"none for {subject.id}: name the files after the subjects' folders"
                )
        own = [] if contender.adapters is None else [contender.adapters[one.id] for one in subjects]
        for adapter in (*own, *contender.besides):
            require_fits(base, adapter.layout)


def _make(
    base: BaseModel, factors: Factors | None, subject: Subject, config: CompareConfig
) -> UInt8[Tensor, "k h w 3"]:
    prompts = _prompts(config)
    seeds = [stream_seed(config.seed, "compare", subject.id, i) for i in range(len(prompts))]
    return base.sample(prompts, seeds, factors, config.sampling)


def _prompts(config: CompareConfig) -> list[str]:
    return [prompt for prompt in config.prompts for _ in range(config.images)]


def _measure(
    judges: Judges,
    images: UInt8[Tensor, "k h w 3"],
    real: Sequence[Float[Tensor, "j _"]],
    config: CompareConfig,
) -> dict[str, float]:
    """One subject's figures; `real` is what each encoder sees in its own images."""
    made, presence, _ = judges.encoder.see(images)
    figures = {"likeness": float(likeness(made[None], real[0][None]))}
    if judges.second is not None:
        seen = judges.second.embed(images)
        figures["likeness_second"] = float(likeness(seen[None], real[1][None]))
    if judges.prompts is not None:
        figures["prompt_score"] = float(judges.prompts(images, _prompts(config)).mean())
    figures["diversity"] = float(mean_pairwise_distance(made[None]))
    return {**figures, "shown": float((presence >= 0.5).float().mean())}


def _row(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Means with intervals over subjects, and paired differences from the first row."""
    values: dict[str, Tensor] = row["values"]
    return {
        "contender": row["contender"],
        "strength": row["strength"],
        **{name: asdict(bootstrap(figures)) for name, figures in values.items()},
        "less_the_first": {
            name: asdict(bootstrap(figures - first["values"][name]))
            for name, figures in values.items()
        },
    }


def draw_strengths(report: Mapping[str, Any]) -> Figure:
    """Likeness and prompt score against strength, a line for each contender."""
    figure = Figure(figsize=(8, 3.4), dpi=130)
    names = [n for n in ("likeness", "prompt_score", "diversity") if n in report["rows"][0]]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for contender in dict.fromkeys(row["contender"] for row in report["rows"]):
            rows = [row for row in report["rows"] if row["contender"] == contender]
            intervals, strengths = [row[name] for row in rows], [row["strength"] for row in rows]
            means, spans = [interval["mean"] for interval in intervals], bars(intervals)
            axes.errorbar(strengths, means, yerr=spans, fmt="o-", capsize=2, label=contender)
        axes.set(xlabel="strength", title=name.replace("_", " "))
    figure.axes[0].legend(fontsize=7)
    figure.tight_layout()
    return figure
