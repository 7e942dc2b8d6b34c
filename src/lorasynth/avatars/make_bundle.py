"""Make the bundle from nothing: every stage of the system, in order, each resumable.

A stage whose output exists is skipped; a stage that was cut off goes on from its checkpoint.
"""

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lorasynth import __version__
from lorasynth.avatars.benchmark import Attributes, TestAvatars
from lorasynth.avatars.bundle import MANIFEST, Bundle, write_manifest
from lorasynth.avatars.commands import TrainAutoencoder, TrainBase, TrainJudge
from lorasynth.avatars.config import BaseTrainingConfig, JudgeConfig
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.avatars.encoder import AVATARS
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.parts import PartsConfig, parts_report
from lorasynth.avatars.reader import AttributeReader
from lorasynth.base import BaseModel
from lorasynth.codec import fit_codec, load_codec
from lorasynth.collect import SimilarityGate, Worker, collect
from lorasynth.collect.embedding import column_of, embed_library
from lorasynth.commands.encoders import TrainEncoder
from lorasynth.condition import ConditionEncoder, JoinedEncoder, load_encoder
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.cache import Cache
from lorasynth.core.command import Command
from lorasynth.core.config import read_json, to_dict
from lorasynth.core.stages import StagedRun
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.engine.config import ArcFaceConfig
from lorasynth.engine.recipe import PRESETS, Recipe
from lorasynth.evaluation.benchmark import Benchmark, Contender
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.evaluation.contenders import sampled
from lorasynth.evaluation.metrics import Identity
from lorasynth.evaluation.report import STRENGTHS, tuned
from lorasynth.hypernet.library_data import training_set
from lorasynth.hypernet.train import HypernetConfig
from lorasynth.hypernet.train import train as train_hypernet
from lorasynth.library import Library
from lorasynth.predict import PredictorTraining, train_predictor
from lorasynth.synthesizer import Synthesizer

#: Where adapters of the shipped synthesizers say that their base model is.
_BASE = "bundle/base"


@dataclass(frozen=True, kw_only=True)
class MeasuresConfig:
    """What the manifest's figures are measured on; decides no stage's output.

    Attributes:
        parts: what is measured of the parts.
        evaluation: of the whole.
        tuning: validation subjects on whom every contender's strength is chosen.
        resamples: adapters synthesised from one condition to measure how they differ.
    """

    parts: PartsConfig = field(default_factory=PartsConfig)
    evaluation: BenchmarkConfig = field(default_factory=lambda: BenchmarkConfig(subjects=500))
    tuning: int = 48
    resamples: int = 16


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """Every choice behind the shipped bundle.

    Attributes:
        subjects: whose images train the base model; as many others each train the judge and the
            condition encoder.
        second_subjects: other subjects, for the encoder that only judges.
        second_steps: of its training.
        siblings: subjects who share all colours, among those that an encoder learns to tell apart.
        base: training of the base model.
        judge: training of the judge, and of the network whose feature maps train the autoencoder;
            the two share neither subjects nor start.
        arcface: training of the encoders.
        reads_attributes: whether conditions hold, beside the first encoder's embedding, what the
            network of the stage `perception` reads of attributes.
        pretraining: training of the synthesizer that the library starts from; None: it starts from
            nothing.
        pretraining_subjects: other subjects, whose images it is trained with; what an embedding
            tells is learned from many.
        pretraining_images: of each; two are needed, one to see and one to denoise.
        library: adapters collected; the gate refuses three in a thousand, so that 2,000 remain.
        recipe: how each adapter is trained.
        least_likeness: of adapters that may join the library (see `SimilarityGate`); None: all may.
        codec: name of the codec.
        codec_options: its options.
        hypernet: training of the hypernetwork.
        temperature: of the shipped synthesizer's noise.
        strengths: of which each synthesizer gets the best on validation subjects.
        practice: these subjects.
        sample: raw adapters shipped as a small library.
        measures: what is measured of the bundle that was made.
        seed: of everything; the second encoder uses the next one.
    """

    subjects: int = 6000
    second_subjects: int = 16000
    second_steps: int = 8000
    siblings: int = 4
    base: BaseTrainingConfig = field(default_factory=BaseTrainingConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    reads_attributes: bool = True
    pretraining: PredictorTraining | None = field(default_factory=PredictorTraining)
    pretraining_subjects: int = 16000
    pretraining_images: int = 4
    library: int = 2010
    recipe: Recipe = PRESETS["anchored"]
    least_likeness: float | None = 0.5
    codec: str = "pca"
    codec_options: dict[str, Any] = field(default_factory=lambda: {"latents": 128})
    hypernet: HypernetConfig = field(default_factory=HypernetConfig)
    temperature: float = 0.5
    strengths: tuple[float, ...] = STRENGTHS
    practice: BenchmarkConfig = field(
        default_factory=lambda: BenchmarkConfig(subjects=48, split="validation")
    )
    sample: int = 8
    measures: MeasuresConfig = field(default_factory=MeasuresConfig)
    seed: int = 0


def trainings(
    config: BundleConfig, run: Path, device: torch.device, workers: int
) -> dict[str, Command]:
    """The commands that train the embedded models, by the stage that each makes in `run/out`."""
    folder: dict[str, Any] = {"run_folder": run / "embedded", "workers": workers}
    folder["device"] = str(device)
    drawn: dict[str, Any] = {**folder, "subjects": config.subjects, "draw_seed": config.seed}
    out, base = run / "out", config.base
    perception = out / "perception"

    def judge(name: str, series: str, seed: int) -> TrainJudge:
        options = replace(config.judge.optimisation, seed=seed)
        training = replace(config.judge, optimisation=options)
        return TrainJudge(out=out / name, series=series, judge=training, **drawn)

    def encoder(name: str, series: str, trunk: Any, count: int, options: Any) -> TrainEncoder:
        settings = f"split=train,images=8,seed={config.seed},siblings={config.siblings}"
        return TrainEncoder(
            images=f"avatars:{count},{settings},series={series}",
            out=out / name,
            encoder=replace(AVATARS, name=name, trunk=trunk),
            training=replace(config.arcface, optimisation=options),
            others=f"faceless:{config.arcface.negatives // 4}",
            held_out=0.02,
            **folder,
        )

    first = replace(config.arcface.optimisation, seed=config.seed)
    second = replace(first, seed=config.seed + 1, steps=config.second_steps)
    return {
        "perception": judge("perception", "base", config.seed),
        "autoencoder": TrainAutoencoder(
            out=out / "autoencoder", config=base, perception=perception, **drawn
        ),
        "base": TrainBase(
            out=out / "base",
            config=base,
            autoencoder=out / "autoencoder",
            perception=perception,
            **drawn,
        ),
        "judge": judge("judge", "judge", config.seed + 1),
        "avatar": encoder("avatar", "first", "residual", config.subjects, first),
        "avatar-second": encoder(
            "avatar-second", "second", "separable", config.second_subjects, second
        ),
    }


class BundleMaker:
    """Makes one bundle in a folder of stages.

    Stages that need nothing of one another (base model, judge, encoders) may be made side by side
    by several processes: with one core each they take less time than one after another.  The
    autoencoder needs the perception, the base model the autoencoder, and the library all.
    """

    def __init__(
        self,
        config: BundleConfig,
        run: Path,
        device: torch.device,
        workers: int,
        command: str = "lorasynth avatars bundle",
    ) -> None:
        self.config = config
        self.run = run
        self.device = device
        self.command = command
        makers: dict[str, Callable[[Path], Any]] = {
            name: lambda _, step=step: step.run()  # type: ignore[misc]
            for name, step in trainings(config, run, device, workers).items()
        }
        if config.pretraining is not None:
            makers["pretrained"] = self._pretrained
        makers |= {
            "library": self._library,
            "codec": self._codec,
            "synthesizer": self._synthesizer,
        }
        choices = to_dict(config)
        del choices["measures"]
        if config.pretraining is not None:
            choices["pretraining"] = config.pretraining.stated
        self.stages = StagedRun(run, makers, choices)

    def make(self, out: Path) -> None:
        """Run every stage that is missing, then assemble, evaluate and write the manifest.

        Raises:
            LorasynthError: a stage cannot be run, or `out` cannot be written.
        """
        self.stages.make_all()
        with atomic_directory(out) as folder:
            self._assemble(folder)

    @property
    def subjects(self) -> AvatarSubjects:
        """The library's subjects."""
        return AvatarSubjects(split="train", count=self.config.library, seed=self.config.seed)

    def _base_model(self) -> BaseModel:
        return BaseModel.load(self.stages.path("base"), self.device)

    def _pretrained(self, path: Path) -> None:
        base, encoder = self._base_model(), self._conditioner()
        source = AvatarSubjects(
            split="train",
            count=self.config.pretraining_subjects,
            images=self.config.pretraining_images,
            seed=self.config.seed,
            series="pretraining",
        )
        recipe, checkpoint = self.config.recipe, self.run / "pretrained.safetensors"
        options = self.config.pretraining
        assert options is not None, "else there is no such stage"
        options = replace(options, held_out=0)  # other subjects choose the strength
        made = train_predictor(base, encoder, source, recipe, options, checkpoint)
        whole = Synthesizer.of(base, made.layout, encoder, made.hypernet, made.codec)
        self._at_its_best(base, whole).save(path)

    def _at_its_best(self, base: BaseModel, synthesizer: Synthesizer) -> Synthesizer:
        """The synthesizer with the strength that suits validation subjects."""
        encoders = [load_encoder(self.stages.path(name)) for name in ("avatar", "avatar-second")]
        judge, practice = AttributeJudge.load(self.stages.path("judge")), self.config.practice
        run = Benchmark(
            base,
            TestAvatars.of(practice, base.image_size),
            [Identity(encoders), Attributes(judge)],
            practice,
            conditioners=[synthesizer.encoder],
            cache=Cache(self.run / "evaluation"),
        )
        contender = Contender(name="synthesised", adapters=sampled(synthesizer))
        best = tuned(run, [contender], self.config.strengths)
        return replace(synthesizer, strength=best["synthesised"])

    def _conditioner(self) -> ConditionEncoder:
        """The encoder that makes the conditions."""
        identity = load_encoder(self.stages.path("avatar"))
        if not self.config.reads_attributes:
            return identity
        reader = AttributeReader(AttributeJudge.load(self.stages.path("perception")))
        return JoinedEncoder([identity, reader])

    def _anchor(self) -> Synthesizer | None:
        if self.config.pretraining is None:
            return None
        return Synthesizer.from_pretrained(self.stages.path("pretrained"))

    def _library(self, path: Path) -> None:
        base, anchor = self._base_model(), self._anchor()
        growing = self.run / "library"
        encoder, least = load_encoder(self.stages.path("avatar")), self.config.least_likeness
        gate = None if least is None else SimilarityGate(base=base, encoder=encoder, least=least)
        worker = Worker(base=base, init_from=anchor, gate=gate)
        report = collect(worker, self.subjects, growing, self.config.recipe)
        embed_library(Library.open(growing), self.subjects, self._conditioner())
        if report.collected:
            self.stages.note("adapter", report.seconds / len(report.collected))
        growing.rename(path)

    def _codec(self, path: Path) -> None:
        library = Library.open(self.stages.path("library"))
        options = self.config.codec_options
        fit_codec(self.config.codec, library, options, device=self.device).cpu().save(path)

    def _synthesizer(self, path: Path) -> None:
        library = Library.open(self.stages.path("library"))
        codec, encoder = load_codec(self.stages.path("codec")), self._conditioner()
        data = training_set(library, codec, column_of(encoder))
        checkpoint = self.run / "hypernet.safetensors"
        around = self._anchor()
        anchor = None if around is None else around.regression_in(codec)
        hypernet = train_hypernet(data, self.config.hypernet, anchor=anchor, checkpoint=checkpoint)
        base = self._base_model()
        whole = Synthesizer.of(base, library.layout, encoder, hypernet, codec)
        whole = replace(whole, temperature=self.config.temperature)
        self._at_its_best(base, whole).save(path)

    def _assemble(self, folder: Path) -> None:
        """Put the parts in place, measure them, and write the manifest."""
        library = Library.open(self.stages.path("library"))
        shutil.copytree(self.stages.path("base"), folder / "base")
        encoders = [load_encoder(self.stages.path(name)) for name in ("avatar", "avatar-second")]
        for encoder in encoders:
            encoder.save(folder / "encoders" / encoder.name)
        judge = AttributeJudge.load(self.stages.path("judge"))
        judge.save(folder / "judge")
        if anchor := self._anchor():
            replace(anchor, base_name=_BASE).save(folder / "pretrained")
        synthesizer = Synthesizer.from_pretrained(self.stages.path("synthesizer"))
        replace(synthesizer, base_name=_BASE).save(folder / "synthesizer")
        column = column_of(synthesizer.encoder)
        LatentLibrary.encode(library, synthesizer.codec, column).save(folder / "library")
        self._write_sample(library, folder / "sample")
        write_json(folder / "recipe.json", to_dict(self.config.recipe))
        write_manifest(folder, self._facts())
        cache = self.run / "evaluation"
        measure_bundle(folder, self.config.measures, cache, self.device, self.command)

    def _write_sample(self, library: Library, path: Path) -> None:
        count = min(self.config.sample, len(library))
        rows = library.table.slice(0, count).to_pylist()
        sample = Library.create(
            path,
            library.layout,
            library.info.base_fingerprint,
            library.info.recipe,
            gauge=library.info.gauge,
            dtype="float16",
        )
        if library.reference is not None:
            sample.freeze(library.reference)
        sample.append(library.factors(range(count)), rows)

    def _facts(self) -> dict[str, Any]:
        return {
            **_circumstances(self.command, self.device),
            "licences": {
                "weights": "Apache-2.0, made by this project from drawn images",
                "drawings": 'style "Avataaars" by Pablo Stanley, "Free for personal and commercial '
                'use", https://avataaars.com/, drawn by DiceBear (MIT)',
            },
            "config": self.stages.choices,
            "seconds": self.stages.seconds(),
        }


def measure_bundle(
    folder: Path, config: MeasuresConfig, cache: Path, device: torch.device, command: str
) -> None:
    """Measure a bundle and write the figures into its manifest, in place of any older ones.

    Args:
        folder: of the bundle.
        config: what is measured.
        cache: folder for trained adapters and for what was measured.
        device: where.
        command: that asked for it.

    Raises:
        BundleError: it is damaged.
    """
    bundle = Bundle.open(folder, device)
    encoders = [bundle.first, bundle.second]
    figures = {
        "measured": _circumstances(command, device),
        "parts": parts_report(bundle.base, encoders, bundle.judge, config.parts),
        "evaluation": bundle.evaluate(
            config.evaluation, Cache(cache), tune=config.tuning, resamples=config.resamples
        ),
    }
    write_manifest(folder, read_json(folder / MANIFEST) | figures)


def _circumstances(command: str, device: torch.device) -> dict[str, Any]:
    return {
        "command": command,
        "version": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "device": device.type,
            "threads": torch.get_num_threads(),
        },
    }
