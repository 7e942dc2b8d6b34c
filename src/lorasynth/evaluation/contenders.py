"""What can contend: the synthesizer, baselines, adapters really trained, files of any origin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Adapter, Factors, concatenate, map_factors, scaled, stack
from lorasynth.adapter.files import is_lora
from lorasynth.base import BaseModel
from lorasynth.base.compatibility import require_fits
from lorasynth.collect import AdapterPredictor, CollectConfig, Worker, collect
from lorasynth.condition import ConditionEncoder, framed_subject
from lorasynth.core.atomic import as_file_name
from lorasynth.core.cache import Cache
from lorasynth.core.errors import ConfigError
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.engine.recipe import Recipe
from lorasynth.evaluation.baselines import BASELINES, Predictor
from lorasynth.evaluation.benchmark import Adapters, Contender
from lorasynth.evaluation.cases import Case, TestSubjects
from lorasynth.hypernet import LatentDiffusion
from lorasynth.library import Library
from lorasynth.optimise import Watching, captioned, refine
from lorasynth.optimise.config import REFINE
from lorasynth.synthesizer import Synthesizer


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What contenders are made from.

    Attributes:
        base: the base model.
        synthesizer: makes adapters of the references; None without.
        regression: another, trained through the base model's loss: the contender `direct`, and
            what trained adapters start from; None without.
        library: what baselines learn from, in the synthesizer's codec; None: no baselines.
        recipe: of adapters that are trained; None: none are.
        seed: of every random stream.
    """

    base: BaseModel
    synthesizer: Synthesizer | None = None
    regression: Synthesizer | None = None
    library: LatentLibrary | None = None
    recipe: Recipe | None = None
    seed: int = 0

    @property
    def conditioners(self) -> list[ConditionEncoder]:
        """The encoders that see the references."""
        makers = (self.synthesizer, self.regression)
        return [one.encoder for one in makers if one is not None and one.encoder.looks]

    def vectors(self, adapters: Factors) -> Float[Tensor, "n D"]:
        """Canonical vectors of any stacked adapters, in the library's gauge."""
        assert self.library is not None, "its gauge is needed"
        return self.library.vectors(adapters, self.whole.layout)

    def encode(self, adapters: Factors) -> Float[Tensor, "n k"]:
        """Latents of any stacked adapters, as the library's are."""
        return self.whole.codec.encode(self.vectors(adapters))

    @property
    def whole(self) -> Synthesizer:
        """The synthesizer.

        Raises:
            ConfigError: there is none.
        """
        if self.synthesizer is None:
            raise ConfigError("this contender needs a synthesizer: give --synthesizer")
        return self.synthesizer


def sampled(synthesizer: Synthesizer, seed: int = 0, temperature: float | None = None) -> Adapters:
    """What a synthesizer makes of the references, without its strength."""

    def adapters(cases: Sequence[Case]) -> Factors:
        names, conditions = [case.id for case in cases], conditions_of(synthesizer, cases)
        latents = synthesizer.latents(conditions, names, seed=seed, temperature=temperature)
        return synthesizer.decode(latents)

    return adapters


def conditions_of(synthesizer: Synthesizer, cases: Sequence[Case]) -> Float[Tensor, "n m"]:
    """The condition of each case's reference."""
    return synthesizer.conditions([case.reference for case in cases])


def trained(
    base: BaseModel,
    subjects: TestSubjects,
    recipe: Recipe,
    anchor: AdapterPredictor | None,
    cache: Cache,
) -> Adapters:
    """Adapters trained on the images that the subjects' source gives to learn from: the ceiling.

    They are kept, so that a second benchmark of the same subjects does not train again.
    """

    @once
    def library() -> Library:
        start = None if anchor is None else anchor.fingerprint
        parts = [base.fingerprint, recipe.fingerprint, start]
        path = cache.path("trained", [*parts, subjects.key])
        if not Library.is_at(path) or set(subjects.ids) - set(Library.open(path).ids):
            collect(
                Worker(base=base, init_from=anchor), subjects, path, recipe, CollectConfig(fleet=25)
            )
        return Library.open(path)

    def adapters(cases: Sequence[Case]) -> Factors:
        return library().factors(library().rows_of([case.id for case in cases]))

    return adapters


def refined(parts: Parts, subjects: TestSubjects) -> Adapters:
    """What the synthesizer makes, refined with the images to learn from as the command does it."""
    start = parts.regression or parts.whole
    recipe = replace(REFINE, targets=(parts.recipe or REFINE).targets)
    base, watching = parts.base, Watching(start.encoder) if start.encoder.looks else None

    def adapter(case: Case) -> Factors:
        subject = framed_subject(subjects.load(case.id), base.image_size, [start.encoder])
        first = scaled(start.predict([subject]), start.strength)
        subject = captioned(base, subject, first)
        return refine(base, recipe, subject, first, watching).factors

    return lambda cases: concatenate([adapter(case) for case in cases])


def _staged(parts: Parts, true: Adapters) -> dict[str, Adapters]:
    """The stages by their names, in their order.

    canonical: in canonical form; compressed: through the codec; denoised: the latent with as much
    noise as signal, denoised once by the hypernetwork.
    """
    whole = parts.whole

    def denoised(cases: Sequence[Case]) -> Factors:
        latents, conditions = parts.encode(true(cases)), conditions_of(whole, cases)
        assert isinstance(whole.hypernet, LatentDiffusion), "else there is no such stage"
        noise = whole.hypernet.draw_noise(parts.seed, [case.id for case in cases])
        return whole.decode(whole.hypernet.clean(latents, conditions, noise, 1.0))

    stages: dict[str, Adapters] = {
        "canonical": lambda cases: whole.layout.unflatten(parts.vectors(true(cases))),
        "compressed": lambda cases: whole.decode(parts.encode(true(cases))),
    }
    return stages | ({"denoised": denoised} if isinstance(whole.hypernet, LatentDiffusion) else {})


def _predicted(synthesizer: Synthesizer, predict: Predictor) -> Adapters:
    """What a baseline predicts from the references, decoded with a synthesizer's codec."""

    @torch.no_grad()
    def adapters(cases: Sequence[Case]) -> Factors:
        return synthesizer.decode(predict(conditions_of(synthesizer, cases)))

    return adapters


def from_files(
    name: str, place: Path, ids: Sequence[str], base: BaseModel, styles: Sequence[Adapter] = ()
) -> Contender:
    """A contender of LoRA files: a folder with one named after each subject, or the only one's.

    Raises:
        ConfigError: a subject has none.
        LayoutError: one does not fit the base model.
    """
    files: dict[str, Path | None] = dict.fromkeys(ids[:1], place) if is_lora(place) else {}
    for subject in ids if not files else ():
        named = place / f"{as_file_name(subject)}.safetensors", place / as_file_name(subject)
        files[subject] = next(filter(is_lora, named), None)
    for subject in ids:
        if files.get(subject) is None:
            raise ConfigError(
                f"every contender needs an adapter for every subject, but {name} has none for "
                f"{subject}: name the files after the subjects' folders"
            )
    loaded = {subject: Adapter.load(path) for subject, path in files.items() if path}
    for adapter in loaded.values():
        require_fits(base, adapter.layout)

    def adapters(cases: Sequence[Case]) -> Factors:
        return stack([loaded[case.id].to(base.dtype).factors for case in cases])

    return Contender(name=name, adapters=adapters, alone=True, styles=styles)


#: Trained adapters after ever more stages of the system, which say where similarity is lost.
STAGES = ("canonical", "compressed", "denoised")
#: Contenders that take part only where they are asked for.
ASKED = (*STAGES, "refined")
#: Names of contenders, in the order of the table.
CONTENDERS = ("base", "described", *BASELINES, "direct", "synthesised", "trained", *ASKED)
#: Those that this system makes from one image, which are compared with all others.
OURS = ("direct", "synthesised")


def contenders_of(
    parts: Parts,
    subjects: TestSubjects,
    cache: Cache,
    names: Sequence[str] | None = None,
    styles: Sequence[Adapter] = (),
) -> list[Contender]:
    """Contenders by their names; by default all that the parts suffice for, but those of `ASKED`.

    Styles are added to each.

    Raises:
        ConfigError: there is no such contender, or a part is missing that it is made from.
    """
    made: dict[str, Contender] = {"base": Contender(name="base")}
    made["described"] = Contender(name="described", described=True)

    def add(name: str, adapters: Adapters, strength: float = 1.0) -> None:
        made[name] = Contender(name=name, adapters=adapters, strength=strength, styles=styles)

    known = parts.library
    for name, fit in BASELINES.items() if known is not None else ():
        if known is not None and (names is None or name in names):
            add(name, _predicted(parts.whole, fit(known, parts.seed)))
    for name, one in (("direct", parts.regression), ("synthesised", parts.synthesizer)):
        if one is not None:
            add(name, sampled(one, parts.seed), one.strength)
    if parts.recipe is not None:
        true = trained(parts.base, subjects, parts.recipe, parts.regression, cache)
        for name, adapters in {"trained": true, **(_staged(parts, true) if known else {})}.items():
            add(name, adapters)
    if parts.regression or parts.synthesizer:
        add("refined", refined(parts, subjects))
    chosen = [name for name in made if name not in ASKED] if names is None else names
    for name in chosen:
        if name not in made:
            raise ConfigError(
                f"a contender must be one of {', '.join(CONTENDERS)}, and what it is made from be "
                "given (--synthesizer, --regression, --library, --recipe), but got "
                f"{name!r}"
            )
    for style in styles:
        require_fits(parts.base, style.layout)
    return [replace(made[name], styles=styles) for name in chosen]


def require_described(contenders: Sequence[Contender], cases: Sequence[Case]) -> list[Contender]:
    """Contenders without those that need words, where nobody has words for the subjects."""
    return [one for one in contenders if not one.described or all(c.described for c in cases)]


def best_strength(
    measured: Mapping[float, Mapping[str, Any]], alone: Mapping[str, Any], lost: float = 0.05
) -> float:
    """The strength at which adapters are most like their subjects and still follow prompts.

    Identity similarity alone is highest where attributes are already overdone, so where these are
    read, both count, and alike.

    Args:
        measured: figures by strength, of validation subjects; those strengths count at which
            prompts are followed nearly as well as by the base model alone, or as well as at any.
        alone: figures of the base model.
        lost: how much of prompt following a strength may cost.
    """
    figure = next((f for f in ("prompt_following", "prompt_score") if f in alone), None)

    def mean(figures: Mapping[str, Any], name: str) -> float:
        return float(figures[name].mean())

    counted = list(measured)
    if figure is not None:
        follows = {s: mean(one, figure) for s, one in measured.items()}
        least = min(mean(alone, figure) - lost, max(follows.values()))
        counted = [s for s in counted if follows[s] >= least]
    like = [f for f in ("identity_similarity", "attribute_accuracy") if f in alone]
    return max(counted, key=lambda s: sum(mean(measured[s], f) for f in like))


def stacked(name: str, adapters: Factors, ids: Sequence[str]) -> Contender:
    """A contender of adapters that are there already, stacked in the order of the ids."""
    place = {subject: row for row, subject in enumerate(ids)}

    def chosen(cases: Sequence[Case]) -> Factors:
        rows = [place[case.id] for case in cases]
        return map_factors(lambda part: part[rows], adapters)

    return Contender(name=name, adapters=chosen)
