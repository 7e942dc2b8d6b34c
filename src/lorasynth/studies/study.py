"""What all claims share: libraries, subjects, and the trainings that several of them look at."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors, Layout, canonicalise, choose_reference, scaled
from lorasynth.avatars.bundle import Bundle
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.codec import Codec, fit_codec, load_codec
from lorasynth.collect import Worker, collect
from lorasynth.collect.embedding import column_of, embed_library
from lorasynth.core.cache import Cache
from lorasynth.core.errors import LibraryError
from lorasynth.engine.recipe import PRESETS, Recipe
from lorasynth.engine.trainer import Optimisation
from lorasynth.evaluation.benchmark import Benchmark, Measured
from lorasynth.evaluation.contenders import stacked, trained
from lorasynth.hypernet import (
    CleanError,
    LatentDiffusion,
    LatentDiffusionConfig,
    TrainingSet,
    gradient_norms,
)
from lorasynth.hypernet.contract import Probe
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.hypernet.train import train as train_hypernet
from lorasynth.images import Subject
from lorasynth.library import Library
from lorasynth.studies.config import ReproduceConfig
from lorasynth.studies.finding import SIMILARITY, listed
from lorasynth.synthesizer import Synthesizer

FoundT = TypeVar("FoundT")

#: Kinds of libraries: ours (the bundle's recipe), and the paper's (A and B trained by Adam).
KINDS = ("ours", "usual")


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
        self.cache = Cache(folder)
        self._count = config.known + config.held_out
        self._given = ours
        self._collected: dict[str, Library] = {}
        if ours is not None and len(ours) < self._count:
            raise LibraryError(
                f"the library must have {self._count} adapters, {config.held_out} of them held "
                f"out, but has {len(ours)}: give a larger one, or smaller numbers by --known "
                "and --held-out"
            )

    def cell(self, name: str, facts: Mapping[str, Any], measure: Callable[[], FoundT]) -> FoundT:
        """One measurement, or what an earlier run kept of it.

        Args:
            name: in words.
            facts: all that decides it, beside the bundle and the sizes of the libraries.
            measure: returns JSON values.
        """
        found: FoundT = self.cache.report(name, {**facts, **self._decided}, measure)
        return found

    @cached_property
    def _decided(self) -> dict[str, Any]:
        """What decides every measurement."""
        bundle, config = self.bundle, self.config
        weights = (bundle.base, bundle.first, bundle.second)
        made = (bundle.synthesizer, bundle.pretrained)
        sizes = ("known", "compared", "held_out", "smoke")
        return {
            "parts": [one.fingerprint for one in weights],
            "metrics": [metric.identity for metric in self.test.metrics],
            "makers": [one and [one.fingerprint, one.strength, one.temperature] for one in made],
            "recipe": bundle.recipe.fingerprint,
            "given": None if self._given is None else self._given.fingerprint,
            **{name: getattr(config, name) for name in sizes},
        }

    @property
    def tested(self) -> dict[str, Any]:
        """Facts of cells that measure the test subjects."""
        return {"test": self.config.test}

    @cached_property
    def test(self) -> Benchmark:
        """The test subjects."""
        return self.bundle.benchmark(self.config.test, self.cache)

    @cached_property
    def curve(self) -> Benchmark:
        """The validation subjects."""
        return self.bundle.benchmark(self.config.curve)

    def conditions(self, run: Benchmark) -> Float[Tensor, "n m"]:
        """Of the reference image of each subject."""
        return self.bundle.synthesizer.conditions([case.reference for case in run.cases])

    def people(self, run: Benchmark, images: int) -> list[Subject]:
        """Each subject with its reference, or with some of the images to learn from."""
        if images == 1:
            return [case.reference for case in run.cases]
        found = [run.subjects.load(case.id) for case in run.cases]
        return [
            replace(one, photos=one.photos[:images], captions=one.captions[:images])
            for one in found
        ]

    def figures(self, adapters: Factors, run: Benchmark | None = None) -> dict[str, Any]:
        """What test subjects' adapters are worth: each figure, subject by subject."""
        run = run or self.test
        return as_json(run.measure(stacked("study", adapters, [case.id for case in run.cases])))

    def recipe(self, kind: str) -> Recipe:
        """How the adapters of a kind are trained."""
        found = ours = self.bundle.recipe
        if kind == "usual":
            found = replace(PRESETS["usual"], targets=ours.targets, rank=ours.rank)
        return replace(found, steps=self.config.recipe_steps or found.steps)

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
        if kind not in self._collected:
            path, bundle = self.cache.folder / f"library-{kind}", self.bundle
            size = bundle.base.image_size
            images = 2 if self.config.smoke else 10  # drawing them is most of a smoke run's work
            source = AvatarSubjects(
                split="train", count=count, images=images, size=size, series="reproduce"
            )
            anchor = bundle.pretrained if kind == "ours" else None
            collect(Worker(base=bundle.base, init_from=anchor), source, path, self.recipe(kind))
            self._collected[kind] = Library.open(path)
            embed_library(self._collected[kind], source, bundle.synthesizer.encoder)
        return self._collected[kind]

    @property
    def layout(self) -> Layout:
        """Of our library's vectors."""
        return self.library.layout

    @cached_property
    def vectors(self) -> tuple[Float[Tensor, "N D"], Float[Tensor, "h D"]]:
        """Our canonical vectors to learn from, and held-out ones."""
        whole = self.library.all_vectors()
        return whole[: self.config.known], whole[self.config.known :]

    def embeddings(self, library: Library) -> Float[Tensor, "n P m"]:
        """Of the subjects of one of the libraries."""
        return library.column(column_of(self.bundle.synthesizer.encoder))

    @property
    def latents(self) -> int:
        """Of codecs, where a claim does not vary it; PCA has no more than vectors less one."""
        return min(self.config.latents, self.config.known - 1)

    def codec(self, name: str, options: Mapping[str, Any], size: int | None = None) -> Codec:
        """A codec fitted to our library's first `size` vectors; None: to all."""
        known, _ = self.vectors
        return fit_codec(name, known[:size], options, device=self.bundle.base.device).cpu()

    def codec_options(self, name: str, seed: int) -> dict[str, Any]:
        """Of the codec that stands for its kind, where a claim does not vary it."""
        if name == "scaled":
            return {}
        trained = {"beta": 0.01, "epochs": self.config.vae_epochs, "seed": seed}
        return {"latents": self.latents, **(trained if name == "vae" else {})}

    def standard_codec(self, name: str, seed: int) -> Codec:
        """That codec, fitted to all known vectors; what was trained is kept on disk."""
        options = self.codec_options(name, seed)
        if name != "vae":
            return self.codec(name, options)
        identity = [name, options, self._decided]
        path = self.cache.folder_of(
            "codec", identity, lambda path: self.codec(name, options).save(path)
        )
        return load_codec(path)

    def trained(self) -> Factors:
        """Adapters really trained for the test subjects with our recipe: the ceiling."""
        bundle, run, recipe = self.bundle, self.test, self.recipe("ours")
        make = trained(bundle.base, run.subjects, recipe, bundle.pretrained, self.cache)
        return make(run.cases)

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
        model = model or LatentDiffusionConfig()
        slow = slow or codec == "scaled" or model.denoiser == "unet"
        config, warmup = self.config, 1 if self.config.smoke else 200
        steps = config.slow_steps if slow else config.steps
        training = HypernetConfig(
            model=model,
            optimisation=Optimisation(
                steps=steps, batch=config.batch, lr=5e-4, warmup=warmup, seed=seed
            ),
            record_every=config.record_every,
        )
        facts = {
            "codec": [codec, self.codec_options(codec, seed)],
            "training": training,
            "curve": self.config.curve,
            **self.tested,
        }
        return self.cell("hypernetwork", facts, lambda: self._train_and_measure(codec, training))

    def _train_and_measure(self, name: str, training: HypernetConfig) -> dict[str, Any]:
        seed, (known, held) = training.optimisation.seed, self.vectors
        codec = self.standard_codec(name, seed)
        seen, held_conditions = self.embeddings(self.library).tensor_split([len(known)])
        probes: list[Probe] = [
            CleanError(codec.encode(held), held_conditions[:, 0]),
            gradient_norms,
            partial(self._similarity, codec, self.conditions(self.curve)),
        ]
        data, begun = TrainingSet(latents=codec.encode(known), conditions=seen), time.monotonic()
        model = train_hypernet(data, training, probes=probes).cpu()
        seconds = time.monotonic() - begun
        noise = model.draw_noise(seed, [case.id for case in self.test.cases])
        latents = model.sample(self.conditions(self.test), noise)
        return {
            **self.figures(self.layout.unflatten(codec.decode(latents))),
            "curve": model.history,
            "seconds": seconds,
            "parameters": sum(p.numel() for p in model.denoiser.parameters()),
        }

    def _similarity(
        self, codec: Codec, conditions: Float[Tensor, "n m"], _step: int, model: LatentDiffusion
    ) -> Mapping[str, float]:
        """Of images made for validation subjects, during training (Figures 5b and 6b); the mean."""
        noise = model.draw_noise(0, [case.id for case in self.curve.cases])
        latents = model.sample(conditions.to(noise), noise).cpu()
        values = self.figures(self.layout.unflatten(codec.decode(latents)), self.curve)[SIMILARITY]
        return {SIMILARITY: sum(values) / len(values)}


def synthesised(synthesizer: Synthesizer, people: Sequence[Subject]) -> Factors:
    """What a synthesizer makes of all images of each subject, at its strength."""
    return scaled(synthesizer.predict(people), synthesizer.strength)


def as_json(measured: Measured) -> dict[str, list[float]]:
    """Each figure, subject by subject."""
    return {name: listed(values) for name, values in measured.figures.items()}
