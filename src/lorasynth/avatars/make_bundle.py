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
from lorasynth.avatars.arcface import ArcFaceConfig, train_encoder
from lorasynth.avatars.autoencoder import perceive, train_autoencoder
from lorasynth.avatars.bundle import MANIFEST, Bundle, write_manifest
from lorasynth.avatars.denoiser import BaseTrainingConfig, save_pipeline, train_base
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.avatars.encoder import AvatarEncoderConfig
from lorasynth.avatars.judge import AttributeJudge, JudgeConfig, train_judge
from lorasynth.avatars.parts import PartsConfig, parts_report
from lorasynth.avatars.pool import Pool, draw_pool, training_subjects
from lorasynth.avatars.reader import AttributeReader
from lorasynth.base import BaseModel
from lorasynth.codec import fit_codec, load_codec
from lorasynth.collect import SimilarityGate, Worker, collect
from lorasynth.collect.embedding import column_of, embed_library
from lorasynth.condition import ConditionEncoder, JoinedEncoder, load_encoder
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.config import read_json, to_dict
from lorasynth.core.stages import StagedRun
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.engine.recipe import PRESETS, Recipe
from lorasynth.evaluation.evaluate import STRENGTHS, EvaluationConfig, best_strength, evaluate
from lorasynth.evaluation.trial import Instruments, Trial, TrialConfig
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
    """

    parts: PartsConfig = field(default_factory=PartsConfig)
    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(trial=TrialConfig(subjects=500), tuning=48)
    )


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
    practice: TrialConfig = field(
        default_factory=lambda: TrialConfig(subjects=48, split="validation")
    )
    sample: int = 8
    measures: MeasuresConfig = field(default_factory=MeasuresConfig)
    seed: int = 0


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
        command: str = "lorasynth bundle make",
    ) -> None:
        self.config = config
        self.run = run
        self.device = device
        self.workers = workers
        self.command = command
        makers: dict[str, Callable[[Path], None]] = {
            "perception": lambda path: self._judge(path, "base", config.seed),
            "autoencoder": self._autoencoder,
            "base": self._base,
            "judge": lambda path: self._judge(path, "judge", config.seed + 1),
            "avatar": lambda path: self._encoder(path, "first"),
            "avatar-second": lambda path: self._encoder(path, "second"),
            "pretrained": self._pretrained,
            "library": self._library,
            "codec": self._codec,
            "synthesizer": self._synthesizer,
        }
        if config.pretraining is None:
            del makers["pretrained"]
        choices = to_dict(config)
        del choices["measures"]
        self.stages = StagedRun(run, makers, choices)

    def make(self, out: Path) -> None:
        """Run every stage that is missing, then assemble, evaluate and write the manifest.

        Raises:
            LorasynthError: a stage cannot be run, or `out` cannot be written.
        """
        self.stages.make_all()
        with atomic_directory(out) as folder:
            self._assemble(folder)

    def _pool(self, series: str, count: int, size: int, siblings: int = 1) -> Pool:
        subjects = training_subjects(series, count, self.config.seed, siblings, size)
        return draw_pool(subjects, self.run / "embedded" / "images", self.workers)

    def _autoencoder(self, path: Path) -> None:
        base, checkpoint = self.config.base, self.run / "embedded" / "autoencoder.safetensors"
        perception = AttributeJudge.load(self.stages.path("perception")).to(self.device)
        images = self._pool("base", self.config.subjects, base.model.image_size).images
        maps = perceive(perception, base.model)
        train_autoencoder(images, base.model, base.autoencoder, checkpoint, path, self.device, maps)

    def _base(self, path: Path) -> None:
        base, run = self.config.base, self.run / "embedded"
        size = base.model.image_size
        subjects = training_subjects("base", self.config.subjects, self.config.seed, size=size)
        autoencoder = self.stages.path("autoencoder")
        perception = AttributeJudge.load(self.stages.path("perception"))
        made = train_base(
            subjects, base, autoencoder, run, self.device, perception, workers=self.workers
        )
        save_pipeline(made, path, to_dict(base))

    def _judge(self, path: Path, series: str, seed: int) -> None:
        options = replace(self.config.judge.optimisation, seed=seed)
        config = replace(self.config.judge, optimisation=options)
        checkpoint = self.run / "embedded" / f"{path.name}.safetensors"
        pool = self._pool(series, self.config.subjects, config.image_size)
        train_judge(pool, config, checkpoint, self.device).cpu().save(path)

    def _encoder(self, path: Path, series: str) -> None:
        second = series == "second"
        config = AvatarEncoderConfig(name=path.name, trunk="separable" if second else "residual")
        options = replace(self.config.arcface.optimisation, seed=self.config.seed + second)
        if second:
            options = replace(options, steps=self.config.second_steps)
        arcface = replace(self.config.arcface, optimisation=options)
        checkpoint = self.run / "embedded" / f"{path.name}.safetensors"
        count = self.config.second_subjects if second else self.config.subjects
        pool = self._pool(series, count, config.image_size, self.config.siblings)
        encoder = train_encoder(pool, config, arcface, checkpoint, self.device)
        encoder.cpu().save(path)

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
        made = train_predictor(base, encoder, source, recipe, options, checkpoint)
        whole = Synthesizer.of(base, made.layout, encoder, made.hypernet, made.codec)
        self._at_its_best(base, whole).save(path)

    def _at_its_best(self, base: BaseModel, synthesizer: Synthesizer) -> Synthesizer:
        """The synthesizer with the strength that suits validation subjects."""
        instruments = Instruments(
            base=base,
            encoder=load_encoder(self.stages.path("avatar")),
            second=load_encoder(self.stages.path("avatar-second")),
            judge=AttributeJudge.load(self.stages.path("judge")),
            condition=synthesizer.encoder,
        )
        run = Trial(instruments, self.config.practice, self.run / "evaluation" / "measured")
        adapters = synthesizer.decode(synthesizer.latents(run.conditions, run.subjects.ids))
        strength = best_strength(run, "synthesised", adapters, self.config.strengths)
        return replace(synthesizer, strength=strength)

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
        "evaluation": evaluate(bundle, config.evaluation, cache),
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
