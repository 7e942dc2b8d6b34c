"""What all claims share: libraries, subjects, and the trainings that several of them look at."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors, Layout, canonicalise, choose_reference, scaled
from lorasynth.avatars.bundle import Bundle
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.base import SamplingConfig
from lorasynth.codec import Codec, fit_codec, load_codec
from lorasynth.collect import Worker, collect
from lorasynth.collect.embedding import column_of, embed_library
from lorasynth.core.atomic import make_parent
from lorasynth.core.config import to_dict
from lorasynth.core.errors import ConfigError, LibraryError
from lorasynth.engine.recipe import PRESETS, Recipe
from lorasynth.engine.trainer import Optimisation
from lorasynth.evaluation.trial import Measured, Trial, TrialConfig
from lorasynth.hypernet import (
    CleanError,
    GradientNorms,
    LatentDiffusion,
    LatentDiffusionConfig,
    TrainingSet,
)
from lorasynth.hypernet.contract import Probe
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.hypernet.train import train as train_hypernet
from lorasynth.images import Subject
from lorasynth.library import Library
from lorasynth.studies.ip_adapter import IPAdapterConfig
from lorasynth.studies.reports import kept_report
from lorasynth.studies.reproduce.finding import listed
from lorasynth.synthesizer import Synthesizer

#: Kinds of libraries: ours (the bundle's recipe), and the paper's (A and B trained by Adam).
KINDS = ("ours", "usual")


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """How much is measured.

    Attributes:
        smoke: so little that no verdict follows.
        seeds: of every training.
        usual: the paper's kind of recipe, in the layout of ours.
        library: adapters of our kind that are learned from.
        compared: adapters of the paper's kind, and of ours where the two are compared.
        held_out: further adapters of each kind, to measure errors on.
        trial: the test subjects, the same for all claims.
        curve: validation subjects whose likeness is measured during training.
        hypernet: training of every hypernetwork, but for what a claim varies.
        slow_steps: of it where a step is slow: U-Nets, and whatever works on scaled vectors.
        latents: of codecs, but for where a claim varies it.
        widths: of codecs that are compared.
        betas: of VAEs that are compared.
        large_betas: further ones, at the width and depth that suit beta = 1 best.
        depths: of VAEs that are compared.
        vae_epochs: of every VAE.
        sizes: of libraries that are compared.
        ranks: of low-rank modulations that are compared.
        refined: steps of refining that are compared.
        trained: steps of training a LoRA, and all weights, that are compared.
        optimised: steps of mixtures and inversions; 400 are weights2weights' own.
        strength: of what these give, chosen on validation subjects as the synthesizer's is, but
            for weights2weights, which has none.
        fully_trained: subjects for whom all weights are trained.
        full_rates: learning rates of that, of which validation subjects choose.
        ip_adapter: training of the IP-Adapter.
        ip_subjects: whose images it is trained on, and ours beside it.
        ip_scales: of its attention, and strengths of ours, of which validation subjects choose.
    """

    smoke: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    usual: Recipe = field(default_factory=lambda: PRESETS["usual"])
    library: int = 1900
    compared: int = 500
    held_out: int = 100
    trial: TrialConfig = field(default_factory=lambda: TrialConfig(subjects=50))
    curve: TrialConfig = field(
        default_factory=lambda: TrialConfig(subjects=12, images=4, split="validation")
    )
    hypernet: HypernetConfig = field(
        default_factory=lambda: HypernetConfig(
            optimisation=Optimisation(steps=4000, batch=64, lr=5e-4), record_every=500
        )
    )
    slow_steps: int = 2000
    latents: int = 128
    widths: tuple[int, ...] = (32, 128, 512, 1024)
    betas: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    large_betas: tuple[float, ...] = (10.0, 100.0)
    depths: tuple[int, ...] = (1, 2)
    vae_epochs: int = 400
    sizes: tuple[int, ...] = (125, 250, 500, 1000, 1900)
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    refined: tuple[int, ...] = (10, 50, 200)
    trained: tuple[int, ...] = (50, 100, 300, 1000)
    optimised: int = 400
    strength: float = 1.1
    fully_trained: int = 8
    full_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    ip_adapter: IPAdapterConfig = field(default_factory=IPAdapterConfig)
    ip_subjects: int = 16_000
    ip_scales: tuple[float, ...] = (0.7, 0.85, 1.0, 1.15, 1.3, 1.45, 1.6)

    def __post_init__(self) -> None:
        """Refuse what no verdict can follow from.

        Raises:
            ConfigError: a list lacks what its claim compares, or is of more than there is.
        """
        rules = {
            "sizes": (max(self.sizes) <= self.library, f"at most library={self.library}"),
            "compared": (self.compared <= self.library, f"at most library={self.library}"),
            "held_out": (self.held_out >= 2, "at least 2, to choose by some and judge by others"),
            "betas": (1.0 in self.betas and min(self.betas) < 1, "1.0 and some below it"),
            "refined": (min(self.refined, default=51) <= 50, "of 50 steps or fewer, at least one"),
            "trained": (bool(self.trained), "at least one number of steps"),
            "seeds": (len(self.seeds) >= 2, "at least two, to have a spread"),
            "fully_trained": (
                2 <= self.fully_trained <= min(self.trial.subjects, self.curve.subjects),
                "from 2 to the subjects of trial and curve",
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"{name} must be {rule}, but got {getattr(self, name)}")


def smoke() -> ReproduceConfig:
    """Every cell once, as small as can be."""
    # A batch that takes one subject's images, and not a whole number of subjects'.
    sampling = SamplingConfig(steps=2, batch=3)
    few = TrialConfig(subjects=2, images=2, training_images=2, sampling=sampling)
    brief = Optimisation(steps=4, batch=4, lr=5e-4, warmup=1)
    return ReproduceConfig(
        smoke=True,
        seeds=(0, 1),
        usual=replace(PRESETS["usual"], steps=2),
        library=12,
        compared=8,
        held_out=4,
        trial=few,
        curve=replace(few, split="validation"),
        hypernet=HypernetConfig(optimisation=brief, record_every=2),
        slow_steps=2,
        latents=4,
        widths=(2, 4),
        betas=(0.1, 1.0),
        large_betas=(10.0,),
        depths=(1, 2),
        vae_epochs=2,
        sizes=(6, 8, 12),
        ranks=(1, 2),
        refined=(1, 2),
        trained=(1, 2),
        optimised=2,
        fully_trained=2,
        full_rates=(1e-4, 3e-4),
        ip_adapter=IPAdapterConfig(optimisation=brief),
        ip_subjects=4,
        ip_scales=(1.0, 1.5),
    )


class Study:
    """The bundle's parts and libraries of both kinds, with every measurement kept on disk.

    Args:
        bundle: what is studied.
        config: how much is measured.
        folder: for libraries and measurements; the same folder resumes.
        ours: a library of our kind, such as the one that the bundle was made from; its first rows
            are used.  None: one is collected.

    Raises:
        LibraryError: `ours` is too small.
    """

    def __init__(
        self, bundle: Bundle, config: ReproduceConfig, folder: Path, ours: Library | None = None
    ) -> None:
        self.bundle = bundle
        self.config = config
        self.folder = folder
        self._count = config.library + config.held_out
        self._given = ours
        self._collected: dict[str, Library] = {}
        if ours is not None and len(ours) < self._count:
            raise LibraryError(
                f"the library must have {self._count} adapters, {self.config.held_out} of them "
                f"held out, but has {len(ours)}: give a larger one, or smaller numbers by --set "
                "library=N --set held_out=N"
            )

    def cell(self, name: str, facts: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """One measurement, or what an earlier run kept of it.

        Args:
            name: in words.
            facts: JSON values that decide it, beside the bundle and the sizes of the libraries.
            measure: returns JSON values.
        """
        asked = {"name": name, "facts": json.loads(json.dumps({**facts, **self._decided}))}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / "cells" / f"{digest}.json"
        return kept_report(path, asked, name, lambda: {"found": measure()})["found"]

    @cached_property
    def _decided(self) -> dict[str, Any]:
        """What decides every measurement."""
        bundle, config = self.bundle, self.config
        made = {"synthesizer": bundle.synthesizer, "pretrained": bundle.pretrained}
        return {
            "parts": bundle.instruments.fingerprints,
            **{
                name: one and [one.fingerprint, one.strength, one.temperature]
                for name, one in made.items()
            },
            "recipe": bundle.recipe.fingerprint,
            "given": None if self._given is None else self._given.fingerprint,
            "library": config.library,
            "compared": config.compared,
            "held_out": config.held_out,
            "smoke": config.smoke,
        }

    @property
    def tried(self) -> dict[str, Any]:
        """Facts of cells that measure the test subjects."""
        return {"trial": to_dict(self.config.trial)}

    @cached_property
    def trial(self) -> Trial:
        """The test subjects."""
        return Trial(self.bundle.instruments, self.config.trial, self.folder / "measured")

    @cached_property
    def curve(self) -> Trial:
        """The validation subjects."""
        return Trial(self.bundle.instruments, self.config.curve)

    def recipe(self, kind: str) -> Recipe:
        """How the adapters of a kind are trained."""
        if kind == "ours":
            return self.bundle.recipe
        targets, rank = self.bundle.recipe.targets, self.bundle.recipe.rank
        return replace(self.config.usual, targets=targets, rank=rank)

    @cached_property
    def library(self) -> Library:
        """Our library, collected as far as it is not yet; the last rows are held out."""
        ours = self._given or self._collect("ours", self._count)
        return ours.select(range(self._count))

    def compared(self, kind: str) -> Library:
        """Adapters of a kind, as many as are compared and those held out, which are the last."""
        known, held = self.config.compared, self.config.held_out
        if kind != "ours":
            return self._collect(kind, known + held).select(range(known + held))
        return self.library.whole.select([*range(known), *range(self._count - held, self._count)])

    def in_gauge(self, kind: str, gauge: str) -> Factors:
        """Those adapters in canonical form under a gauge, or as they were trained ("raw")."""
        factors = self.compared(kind).factors()
        if gauge == "raw":
            return factors
        return canonicalise(factors, gauge, choose_reference(factors, gauge))

    def _collect(self, kind: str, count: int) -> Library:
        """A library of a kind, as far as it is not there yet."""
        if kind in self._collected:
            return self._collected[kind]
        path = self.folder / f"library-{kind}"
        size = self.bundle.base.image_size
        source = AvatarSubjects(split="train", count=count, size=size, series="reproduce")
        anchor = self.bundle.pretrained if kind == "ours" else None
        recipe = self.recipe(kind)
        collect(Worker(base=self.bundle.base, init_from=anchor), source, path, recipe)
        library = self._collected[kind] = Library.open(path)
        embed_library(library, source, self.bundle.synthesizer.encoder)
        return library

    @property
    def layout(self) -> Layout:
        """Of our library's vectors."""
        return self.library.layout

    @cached_property
    def vectors(self) -> tuple[Float[Tensor, "N D"], Float[Tensor, "h D"]]:
        """Our canonical vectors to learn from, and held-out ones."""
        whole = self.library.all_vectors()
        return whole[: self.config.library], whole[self.config.library :]

    def conditions(self, library: Library) -> Float[Tensor, "n P m"]:
        """Embeddings of the subjects of one of the libraries."""
        return library.column(column_of(self.bundle.synthesizer.encoder))

    @property
    def latents(self) -> int:
        """Of codecs, where a claim does not vary it; PCA has no more than vectors less one."""
        return min(self.config.latents, self.config.library - 1)

    def codec(self, name: str, options: Mapping[str, Any], size: int | None = None) -> Codec:
        """A codec fitted to our library's first `size` vectors; None: to all."""
        known, _ = self.vectors
        return fit_codec(name, known[:size], options, device=self.bundle.base.device).cpu()

    def codec_options(self, name: str, seed: int) -> dict[str, Any]:
        """Of the codec of a kind that stands for its kind, where a claim does not vary it."""
        if name == "scaled":
            return {}
        latents = {"latents": self.latents}
        if name == "pca":
            return latents
        return {**latents, "beta": 0.01, "epochs": self.config.vae_epochs, "seed": seed}

    def standard_codec(self, name: str, seed: int) -> Codec:
        """That codec, fitted to all known vectors; what was trained is kept on disk."""
        options = self.codec_options(name, seed)
        if "epochs" not in options:
            return self.codec(name, options)
        facts = json.dumps([name, options, self._decided], sort_keys=True)
        path = self.folder / "codecs" / hashlib.sha256(facts.encode()).hexdigest()[:16]
        if not path.exists():
            make_parent(path)
            self.codec(name, options).save(path)
        return load_codec(path)

    def learned(
        self,
        codec: Codec,
        training: HypernetConfig,
        *,
        probes: Sequence[Probe] = (),
        anchor: Synthesizer | None = None,
    ) -> LatentDiffusion:
        """A hypernetwork trained on our library's latents, around a regression if there is one."""
        known, _ = self.vectors
        conditions = self.conditions(self.library)[: len(known)]
        data = TrainingSet(latents=codec.encode(known), conditions=conditions)
        around = None if anchor is None else anchor.regression_in(codec)
        return train_hypernet(data, training, probes=probes, anchor=around).cpu()

    def trained(self) -> Factors:
        """Adapters really trained for the test subjects with our recipe: the ceiling."""
        recipe, anchor = self.bundle.recipe, self.bundle.pretrained
        return self.trial.trained(recipe, anchor, self.folder / "trained")

    def figures(self, adapters: Factors | None) -> dict[str, Any]:
        """What test subjects' adapters are worth: each figure of `Measured`, subject by subject."""
        return as_json(self.trial.tried("test subjects", adapters))

    def diffusion(
        self,
        seed: int,
        *,
        codec: str = "pca",
        model: LatentDiffusionConfig | None = None,
        slow: bool = False,
    ) -> dict[str, Any]:
        """Train a hypernetwork on our library; its curve, and what test subjects' adapters are.

        Args:
            seed: of the training.
            codec: what it works on.
            model: the hypernetwork; None: the default.
            slow: for as many steps as one whose steps are slow; those are in any case.
        """
        model, usual = model or LatentDiffusionConfig(), self.config.hypernet.optimisation
        slow = slow or codec == "scaled" or model.denoiser == "unet"
        steps = self.config.slow_steps if slow else usual.steps
        optimisation = replace(usual, seed=seed, steps=steps)
        training = replace(self.config.hypernet, model=model, optimisation=optimisation)
        facts = {
            "codec": [codec, self.codec_options(codec, seed)],
            "training": to_dict(training),
            "curve": to_dict(self.config.curve),
            **self.tried,
        }
        measure = partial(_train_and_measure, self, codec, training)
        found: dict[str, Any] = self.cell("hypernetwork", facts, measure)
        return found


def _train_and_measure(study: Study, name: str, training: HypernetConfig) -> dict[str, Any]:
    known, held = study.vectors
    conditions, layout = study.conditions(study.library), study.layout
    codec = study.standard_codec(name, training.optimisation.seed)
    held_conditions = conditions[len(known) :, 0]
    probes: list[Probe] = [CleanError(codec.encode(held), held_conditions), GradientNorms()]
    probes.append(LikenessProbe(run=study.curve, codec=codec, layout=layout))
    begun = time.monotonic()
    model = study.learned(codec, training, probes=probes)
    seconds = time.monotonic() - begun
    run = study.trial
    noise = model.draw_noise(training.optimisation.seed, run.subjects.ids)
    adapters = layout.unflatten(codec.decode(model.sample(run.conditions, noise)))
    return {
        **study.figures(adapters),
        "curve": model.history,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.denoiser.parameters()),
    }


@dataclass(frozen=True, kw_only=True)
class LikenessProbe:
    """Likeness of images made for validation subjects, during training (Figures 5b and 6b)."""

    run: Trial
    codec: Codec
    layout: Layout

    def __call__(self, step: int, model: LatentDiffusion) -> Mapping[str, float]:  # noqa: ARG002
        """`likeness` is the mean over subjects."""
        noise = model.draw_noise(0, self.run.subjects.ids)
        latents = model.sample(self.run.conditions.to(noise), noise).cpu()
        adapters = self.layout.unflatten(self.codec.decode(latents))
        measured = self.run.measure(self.run.images(adapters))
        return {"likeness": float(measured.likeness.mean())}


def synthesised(synthesizer: Synthesizer, people: Sequence[Subject]) -> Factors:
    """What a synthesizer hands out for all images of each subject, at its strength."""
    return scaled(synthesizer.predict(people), synthesizer.strength)


def as_json(measured: Measured) -> dict[str, list[float]]:
    """Each figure, subject by subject."""
    return {name: listed(torch.as_tensor(values)) for name, values in vars(measured).items()}
