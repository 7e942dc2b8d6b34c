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
from lorasynth.avatars.encoder import AVATARS
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.parts import PartsConfig, parts_report
from lorasynth.avatars.reader import AttributeReader
from lorasynth.base import BaseModel
from lorasynth.codec.config import CONFIGS
from lorasynth.collect.embedding import column_of
from lorasynth.commands.collect import Collect
from lorasynth.commands.encoders import TrainEncoder
from lorasynth.commands.pretrain import Pretrain
from lorasynth.commands.train import Fit, Train
from lorasynth.condition import ConditionEncoder, JoinedEncoder, load_encoder
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.cache import Cache
from lorasynth.core.command import Command
from lorasynth.core.config import from_dict, read_json, to_dict
from lorasynth.core.stages import StagedRun
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.engine.config import ArcFaceConfig
from lorasynth.engine.recipe import PRESETS, Recipe
from lorasynth.evaluation.benchmark import Benchmark, Contender
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.evaluation.contenders import sampled
from lorasynth.evaluation.metrics import Identity
from lorasynth.evaluation.report import STRENGTHS, tuned
from lorasynth.hypernet.config import HypernetConfig, LatentDiffusionConfig
from lorasynth.library import Library
from lorasynth.predict.config import PredictorTraining
from lorasynth.synthesizer import Synthesizer

#: Where adapters of the shipped synthesizers say that their base model is.
_BASE = "bundle/base"
#: Chosen on validation subjects: at 3 trained adapters lose 0.04 of identity (docs/experiments.md).
_GUIDANCE = 1.5
#: The stages; `pretrained` and `synthesizer` are `predictor` and `trained` at their best strength.
_ORDER = (
    *("perception", "autoencoder", "base", "judge", "avatar", "avatar-second", "condition"),
    *("predictor", "pretrained", "library", "codec", "trained", "synthesizer"),
)


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
    evaluation: BenchmarkConfig = field(
        default_factory=lambda: BenchmarkConfig(subjects=500, image_guidance=_GUIDANCE)
    )
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
        pretraining: training of the predictor that the library starts from.
        pretraining_subjects: other subjects, whose images it is trained with; what an embedding
            tells is learned from many.
        pretraining_images: of each; two are needed, one to see and one to denoise.
        library: adapters collected; the gate refuses three in a thousand, so that 1,200 remain.
        recipe: how each adapter is trained.
        least_similarity: of adapters that may join the library (see `SimilarityGate`).
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
    second_subjects: int = 8000
    second_steps: int = 6000
    siblings: int = 4
    base: BaseTrainingConfig = field(default_factory=BaseTrainingConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    reads_attributes: bool = True
    pretraining: PredictorTraining = field(
        default_factory=lambda: PredictorTraining(
            optimisation=replace(PredictorTraining().optimisation, steps=8000)
        )
    )
    pretraining_subjects: int = 12000
    pretraining_images: int = 4
    library: int = 1206
    recipe: Recipe = PRESETS["anchored"]
    least_similarity: float | None = 0.5
    codec: str = "pca"
    codec_options: dict[str, Any] = field(default_factory=lambda: {"latents": 128})
    hypernet: HypernetConfig = field(
        # Latents of 16 and of 30 steps differ by 0.5 % of their spread (docs/experiments.md).
        default_factory=lambda: HypernetConfig(model=LatentDiffusionConfig(steps=16))
    )
    temperature: float = 0.5
    strengths: tuple[float, ...] = STRENGTHS
    practice: BenchmarkConfig = field(
        default_factory=lambda: BenchmarkConfig(
            subjects=48, split="validation", image_guidance=_GUIDANCE
        )
    )
    sample: int = 8
    measures: MeasuresConfig = field(default_factory=MeasuresConfig)
    seed: int = 0


def commands(
    config: BundleConfig, run: Path, device: torch.device, workers: int
) -> dict[str, Command]:
    """The commands that make the bundle, by the stage that each makes in `run/out`."""
    out, work = run / "out", run / "work"
    embedded = _embedded(config, out, work, {"device": str(device), "workers": workers})
    made: dict[str, Any] = {"device": str(device), "base": str(out / "base"), "seed": config.seed}
    trained: dict[str, Any] = {**made, "recipe": config.recipe}
    trained["encoder"] = str(out / "condition")
    library: dict[str, Any] = {"library": out / "library", "split": "all", "device": str(device)}
    of = f"split=train,seed={config.seed}"
    many = f"{config.pretraining_subjects},images={config.pretraining_images}"
    fit: Any = Fit.kinds()[config.codec]
    return {
        **embedded,
        "predictor": Pretrain(
            **trained,
            images=f"avatars:{many},{of},series=pretraining",
            out=out / "predictor",
            training=config.pretraining,
            run_folder=work / "predictor",
        ),
        "library": Collect(
            **trained,
            images=f"avatars:{config.library},{of}",
            out=out / "library",
            init_from=str(out / "pretrained"),
            min_similarity=config.least_similarity,
        ),
        "codec": fit(
            **library,
            out=out / "codec",
            run_folder=work / "fit",
            config=from_dict(CONFIGS[config.codec], config.codec_options),
        ),
        "trained": Train(
            **library,
            base=made["base"],
            codec=out / "codec",
            encoder=trained["encoder"],
            out=out / "trained",
            residual_of=str(out / "pretrained"),
            temperature=config.temperature,
            run_folder=work / "train",
            training=config.hypernet,
        ),
    }


def _embedded(
    config: BundleConfig, out: Path, work: Path, how: dict[str, Any]
) -> dict[str, Command]:
    """The commands that train the base model, the judge and the encoders."""
    base, perception = config.base, out / "perception"

    def drawn(name: str) -> dict[str, Any]:
        own = {"out": out / name, "run_folder": work / name, "subjects": config.subjects}
        return {**how, **own, "draw_seed": config.seed}

    def judge(name: str, series: str, seed: int) -> TrainJudge:
        options = replace(config.judge.optimisation, seed=seed)
        training = replace(config.judge, optimisation=options)
        return TrainJudge(series=series, judge=training, **drawn(name))

    def encoder(name: str, series: str, trunk: Any, count: int, options: Any) -> TrainEncoder:
        settings = f"split=train,images=8,seed={config.seed},siblings={config.siblings}"
        return TrainEncoder(
            **how,
            images=f"avatars:{count},{settings},series={series}",
            out=out / name,
            run_folder=work / name,
            encoder=replace(AVATARS, name=name, trunk=trunk, image_size=base.model.image_size),
            training=replace(config.arcface, optimisation=options),
            others=f"not-avatars:{2 * config.arcface.negatives}",
            held_out=0.02,
        )

    first = replace(config.arcface.optimisation, seed=config.seed)
    second = replace(first, seed=config.seed + 1, steps=config.second_steps)
    return {
        "perception": judge("perception", "base", config.seed),
        "autoencoder": TrainAutoencoder(config=base, perception=perception, **drawn("autoencoder")),
        "base": TrainBase(
            config=base, autoencoder=out / "autoencoder", perception=perception, **drawn("base")
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
    autoencoder needs the perception, the base model the autoencoder, and the predictor all.
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
        made: dict[str, Callable[[Path], Any]] = {
            name: lambda _, step=step: step.run()  # type: ignore[misc]
            for name, step in commands(config, run, device, workers).items()
        }
        made |= {
            "condition": self._condition,
            "pretrained": lambda path: self._at_its_best("predictor", path),
            "synthesizer": lambda path: self._at_its_best("trained", path),
        }
        choices = to_dict(config)
        del choices["measures"]
        choices["pretraining"] = config.pretraining.stated
        self.stages = StagedRun(run, {name: made[name] for name in _ORDER}, choices)

    def make(self, out: Path) -> None:
        """Run every stage that is missing, then assemble, evaluate and write the manifest.

        Raises:
            LorasynthError: a stage cannot be run, or `out` cannot be written.
        """
        self.stages.make_all()
        with atomic_directory(out) as folder:
            self._assemble(folder)

    def _condition(self, path: Path) -> None:
        """Write the encoder that makes the conditions."""
        identity: ConditionEncoder = load_encoder(self.stages.path("avatar"))
        if self.config.reads_attributes:
            reader = AttributeReader(AttributeJudge.load(self.stages.path("perception")))
            identity = JoinedEncoder([identity, reader])
        identity.save(path)

    def _at_its_best(self, name: str, path: Path) -> None:
        """Write a synthesizer with the strength that suits validation subjects."""
        base = BaseModel.load(self.stages.path("base"), self.device)
        synthesizer = Synthesizer.from_pretrained(self.stages.path(name))
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
        replace(synthesizer, strength=best["synthesised"]).save(path)

    def _assemble(self, folder: Path) -> None:
        """Put the parts in place, measure them, and write the manifest."""
        library = Library.open(self.stages.path("library"))
        shutil.copytree(self.stages.path("base"), folder / "base")
        encoders = [load_encoder(self.stages.path(name)) for name in ("avatar", "avatar-second")]
        for encoder in encoders:
            encoder.save(folder / "encoders" / encoder.name)
        judge = AttributeJudge.load(self.stages.path("judge"))
        judge.save(folder / "judge")
        for name in ("pretrained", "synthesizer"):
            synthesizer = Synthesizer.from_pretrained(self.stages.path(name))
            replace(synthesizer, base_name=_BASE).save(folder / name)
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
        seconds = self.stages.seconds()
        return {
            **_circumstances(self.command, self.device),
            "licences": {
                "weights": "Apache-2.0, made by this project from drawn images",
                "drawings": 'style "Avataaars" by Pablo Stanley, "Free for personal and commercial '
                'use", https://avataaars.com/, drawn by DiceBear (MIT)',
                "negatives": "what encoders learn to refuse: DiceBear's styles adventurer, micah, "
                "toon-head (CC BY 4.0) and others (NOTICE); no drawing is in the bundle",
            },
            "config": self.stages.choices,
            # Outputs that were put into the run: `config` does not tell how these were made.
            "taken": [name for name in self.stages.makers if name not in seconds],
            "seconds": seconds,
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
