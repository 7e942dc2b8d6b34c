"""`lorasynth avatars ...`: the embedded domain and its models."""

import os
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional

from lorasynth.avatars.config import TRAINING, BaseTrainingConfig, JudgeConfig
from lorasynth.commands.shared import Resumed
from lorasynth.core.command import Command, Flat, OnDevice, Out, Seeded

if TYPE_CHECKING:
    from lorasynth.avatars.pool import Drawn

_GROUP = "The embedded domain: drawn avatars"
_CORES = os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Demo(Command, Seeded, OnDevice):
    """Synthesise, train and compare adapters for avatars never trained on, as one page.

    Attributes:
        out: Folder to write.
        subjects: Unseen subjects.
        bundle: Folder of the bundle.
    """

    group: ClassVar[str] = "Use"

    out: Out = Path("demo")
    subjects: Annotated[int, Field(ge=2)] = 6
    bundle: Path = Path("bundle")

    def run(self) -> Path:
        """Write the page and the LoRA files."""
        from lorasynth.avatars.bundle import Bundle
        from lorasynth.avatars.demo import write_demo
        from lorasynth.core.device import pick_device
        from lorasynth.evaluation.config import BenchmarkConfig

        config = BenchmarkConfig(subjects=self.subjects, seed=self.seed, images=6)
        page = write_demo(Bundle.open(self.bundle, pick_device(self.device)), config, self.out)
        print(page)
        return page


@dataclass(frozen=True, kw_only=True)
class OfDrawings(Resumed, OnDevice):
    """Avatars that are drawn to train on.

    Attributes:
        subjects: Subjects drawn, with 8 images each.
        series: Series of the subjects; series share none.
        draw_seed: Seed of the subjects; that of training is among its options.
        workers: Processes that draw.
    """

    subjects: Annotated[int, Field(ge=1)] = 6000
    series: str = "base"
    draw_seed: int = 0
    workers: Annotated[int, Field(ge=1)] = _CORES

    def drawn(self, size: int) -> "Drawn":
        """The subjects, with images of `size` pixels, which are kept in the run's folder."""
        from lorasynth.avatars.drawing import AvatarSubjects
        from lorasynth.avatars.pool import Drawn

        subjects = AvatarSubjects(
            split="train",
            count=self.subjects,
            images=8,
            size=size,
            seed=self.draw_seed,
            series=self.series,
        )
        return Drawn(subjects, self.run_folder, self.workers)


@dataclass(frozen=True, kw_only=True)
class TrainJudge(Command, OfDrawings):
    """Train a network that reads attributes off avatars; run again to resume.

    Attributes:
        out: Folder to write.
        judge: What is trained, and how.
    """

    group: ClassVar[str] = _GROUP

    out: Out
    judge: Annotated[JudgeConfig, Flat] = field(default_factory=JudgeConfig)

    def run(self) -> Path:
        """Write the network."""
        from lorasynth.avatars.judge import train_judge
        from lorasynth.core.atomic import make_parent
        from lorasynth.core.device import pick_device

        make_parent(self.out, self.run_folder)
        pool = self.drawn(self.judge.image_size).pool()
        checkpoint = self.run_folder / f"{self.out.name}.safetensors"
        train_judge(pool, self.judge, checkpoint, pick_device(self.device)).cpu().save(self.out)
        print(self.out)
        return self.out


def _training_of(folder: Path | None) -> Any:
    """How what lies there was trained, as it states; None of nothing."""
    from lorasynth.core.config import read_json

    if folder is None:
        return None
    stated = folder / TRAINING
    return read_json(stated) if stated.is_file() else "not stated"


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder(Command, OfDrawings):
    """Train the autoencoder of the embedded base model; run again to resume.

    Example: lorasynth avatars autoencoder -o autoencoder --perception judge

    Attributes:
        out: Folder to write.
        perception: Network of attributes (lorasynth avatars judge) whose feature maps train too;
            default: pixels and latents alone.
        start: Autoencoder to start from.
        config: What is trained, and how.
    """

    group: ClassVar[str] = _GROUP

    out: Out
    perception: Path | None = None
    start: Path | None = None
    config: Annotated[BaseTrainingConfig, Flat] = field(default_factory=BaseTrainingConfig)

    def run(self) -> Path:
        """Write the autoencoder, in fp16, and training.json, how it was trained."""
        import torch

        from lorasynth.avatars.autoencoder import perceive, train_autoencoder
        from lorasynth.avatars.judge import AttributeJudge
        from lorasynth.core.atomic import atomic_directory, make_parent, write_json
        from lorasynth.core.config import to_dict
        from lorasynth.core.device import pick_device

        model, on = self.config.model, pick_device(self.device)
        make_parent(self.out, self.run_folder)
        images = self.drawn(model.image_size).pool().images
        network = None if self.perception is None else AttributeJudge.load(self.perception).to(on)
        maps = None if network is None else perceive(network, model)
        checkpoint = self.run_folder / "autoencoder.safetensors"
        vae = train_autoencoder(images, self.config, checkpoint, on, maps, self.start)
        with atomic_directory(self.out) as temporary:
            vae.to(dtype=torch.float16).save_pretrained(temporary)
            stated = to_dict(self.config.autoencoder) | {"start": _training_of(self.start)}
            write_json(temporary / TRAINING, stated)
        print(self.out)
        return self.out


@dataclass(frozen=True, kw_only=True)
class TrainBase(Command, OfDrawings):
    """Train the embedded base model on latents of drawn avatars; run again to resume.

    Example: lorasynth avatars base -o base --autoencoder autoencoder --judge judge

    Attributes:
        out: Folder to write.
        autoencoder: What `lorasynth avatars autoencoder` wrote.
        perception: Network of attributes (lorasynth avatars judge) whose features are learned too.
        judge: Another one, that measures caption following on the way, into the run.
        start: Pipeline to start from, which may have another autoencoder.
        config: What is trained, and how.
    """

    group: ClassVar[str] = _GROUP

    out: Out
    autoencoder: Path
    perception: Path | None = None
    judge: Path | None = None
    start: Path | None = None
    config: Annotated[BaseTrainingConfig, Flat] = field(default_factory=BaseTrainingConfig)

    def run(self) -> Path:
        """Write the pipeline."""
        from lorasynth.avatars.denoiser import Progress, save_pipeline, train_base, untrained
        from lorasynth.avatars.judge import AttributeJudge
        from lorasynth.core.atomic import make_parent
        from lorasynth.core.config import to_dict
        from lorasynth.core.device import pick_device

        on = pick_device(self.device)
        make_parent(self.out, self.run_folder)
        seen = None if self.perception is None else AttributeJudge.load(self.perception)
        judge = None if self.judge is None else AttributeJudge.load(self.judge).to(on)
        watch = None if judge is None else Progress(run=self.run_folder, judge=judge)
        drawn = self.drawn(self.config.model.image_size)
        beginning = untrained(self.config, self.autoencoder, self.start)
        pipeline = train_base(drawn, self.config, beginning, on, seen, watch)
        stated = {
            "model": to_dict(self.config.model),
            "autoencoder": _training_of(self.autoencoder),
            "denoiser": to_dict(self.config.denoiser),
            "start": _training_of(self.start),
        }
        save_pipeline(pipeline, self.out, stated)
        print(self.out)
        return self.out


@dataclass(frozen=True, kw_only=True)
class OfBundle:
    """A bundle.

    Attributes:
        bundle: Folder of the bundle.
    """

    bundle: Positional[Path] = Path("bundle")


@dataclass(frozen=True, kw_only=True)
class MakeBundle(Command, OfBundle, Resumed, OnDevice):
    """Make the shipped models from nothing; run again to resume.

    Attributes:
        only: Make this stage alone: perception, autoencoder, base, judge, avatar, avatar-second,
            condition, predictor, pretrained, library, codec, trained or synthesizer.  Judge and
            encoders need no other stage, so several processes can make them side by side.
        config: JSON file with choices other than the shipped ones, as `config` in MANIFEST.json.
        workers: Processes that draw.
    """

    group: ClassVar[str] = _GROUP

    only: str | None = None
    config: Path | None = None
    workers: Annotated[int, Field(ge=1)] = _CORES

    def run(self) -> Path:
        """Write the bundle, or the stage."""
        from lorasynth.avatars.make_bundle import BundleConfig, BundleMaker
        from lorasynth.core.config import from_dict, read_json
        from lorasynth.core.device import pick_device

        stated = {} if self.config is None else read_json(self.config)
        config, on = from_dict(BundleConfig, stated), pick_device(self.device)
        maker = BundleMaker(config, self.run_folder, on, self.workers)
        if self.only is None:
            maker.make(self.bundle)
            return self.bundle
        maker.stages.make(self.only)
        return maker.stages.path(self.only)


@dataclass(frozen=True, kw_only=True)
class MeasureBundle(Command, OfBundle, OnDevice):
    """Measure a bundle and its parts, and write the figures into its manifest; run again to resume.

    Attributes:
        cache: Folder for trained adapters and measurements.
        config: JSON file with choices other than the shipped ones.
    """

    group: ClassVar[str] = _GROUP

    cache: Path = Path("runs/evaluation")
    config: Path | None = None

    def run(self) -> None:
        """Measure."""
        from lorasynth.avatars.make_bundle import MeasuresConfig, measure_bundle
        from lorasynth.core.config import from_dict, read_json
        from lorasynth.core.device import pick_device

        config = from_dict(MeasuresConfig, {} if self.config is None else read_json(self.config))
        command = "lorasynth avatars measure"
        measure_bundle(self.bundle, config, self.cache, pick_device(self.device), command)


@dataclass(frozen=True, kw_only=True)
class CheckBundle(Command, OfBundle):
    """Compare every file of a bundle with its manifest."""

    group: ClassVar[str] = _GROUP

    def run(self) -> None:
        """Compare."""
        from lorasynth.avatars.bundle import verify
        from lorasynth.core.places import local

        verify(local(self.bundle))
        print(f"{self.bundle} is intact")
