"""`lorasynth fit` and `lorasynth train`: from a library to a synthesizer."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import AvoidSubcommands, Positional, arg

from lorasynth.codec.config import CONFIGS
from lorasynth.commands.shared import TRIGGER, Overwriting, Resumed, memory_of
from lorasynth.core.command import Command, Flat, OnDevice, Out, with_default
from lorasynth.hypernet.config import HypernetConfig

if TYPE_CHECKING:
    from lorasynth.base import BaseModel
    from lorasynth.condition import ConditionEncoder
    from lorasynth.core.learned import Learned
    from lorasynth.hypernet import LatentDiffusion, TrainingSet
    from lorasynth.hypernet.contract import Probe
    from lorasynth.synthesizer import Synthesizer


@dataclass(frozen=True, kw_only=True)
class FromLibrary(Resumed, Overwriting, OnDevice):
    """The adapters that are learned from.

    Attributes:
        library: Library of adapters.
        split: Learn from the adapters of this split of the library's table; all for every one.
    """

    library: Positional[Path]
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class Fit(Command, FromLibrary):
    """Fit a codec, which turns adapters into latents and back, to a library.

    Any number of adapters fits, since they are read in blocks; a fit that was stopped goes on when
    it is run again. pca draws the share of variance by number of components beside the codec, as
    explained_variance.png.

    Example: lorasynth fit pca library -o codec --latents 128

    Attributes:
        out: Codec folder to write.
        memory: Memory that the fit may take, such as 8GB; by default half of the machine's. How it
            is computed follows from it.
        tolerance: Share of the variance that its components could capture which pca may miss where
            it cannot be exact.
        half: Store the codec's matrices as fp16.
        run_folder: Folder for checkpoints; the same folder resumes.
        config: Of the codec.
    """

    group: ClassVar[str] = "Make a synthesizer"
    codec: ClassVar[str] = ""

    out: Out
    memory: str | None = None
    tolerance: Annotated[float, Field(ge=1e-6)] = 1e-3
    half: bool = False
    run_folder: Annotated[Path, arg(name="run")] = Path("runs/fit")

    @classmethod
    def kinds(cls) -> "Mapping[str, type[Command]]":
        """A command for each codec, also of other packages."""
        return _Codecs()

    def run(self) -> Path:
        """Fit the codec and write it."""
        from lorasynth.codec import Budget, fit_into
        from lorasynth.core.atomic import make_parent
        from lorasynth.core.device import pick_device
        from lorasynth.library import Library

        budget = Budget(
            memory=memory_of(self.memory),
            tolerance=self.tolerance,
            run=self.run_folder / self.codec,
            device=str(pick_device(self.device)),
        )
        self.require_free(self.out)
        make_parent(self.out, self.run_folder)
        source = Library.open(self.library).training(self.split)
        config: Any = self.config  # type: ignore[attr-defined]
        fitted = fit_into(self.out, self.codec, source, config, budget, half=self.half)
        print(
            f"{self.out}: {self.codec}, {fitted.width} parameters to {fitted.latents} latents, "
            f"fitted to {len(source)} adapters"
        )
        return self.out


class _Codecs(Mapping[str, type[Command]]):
    """By a codec's name the command that fits it; another package's code runs when it is asked."""

    def __getitem__(self, name: str) -> type[Command]:
        return _fit(name)

    def __iter__(self) -> Iterator[str]:
        others = {point.name for point in entry_points(group="lorasynth.codecs")}
        return iter([*CONFIGS, *sorted(others - CONFIGS.keys())])

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def _fit(name: str) -> type[Fit]:
    if (config := CONFIGS.get(name)) is None:
        from lorasynth.codec import CODECS

        config = CODECS.get(name).config_class
    command = with_default(Fit, "config", Annotated[config, Flat], config)
    command.codec = name
    return command


@dataclass(frozen=True, kw_only=True)
class Train(Command, FromLibrary):
    """Train the hypernetwork on a library, and save the synthesizer.

    A training that was stopped goes on when it is run again, also with more or fewer steps. Loss
    and rate are added to metrics.jsonl in the run's folder; if the library has a split
    "validation", so are errors on its subjects, which end the training early; with --watch-images
    the identity similarity of samples, which stand beside a real image in samples/.

    Under `accelerate launch -m lorasynth train ...` all processes share one batch.

    Example: lorasynth train library --codec codec --encoder bundle/encoders/avatar -o synthesizer
    --optimisation.steps 2000 --model.parameterisation x0

    Attributes:
        codec: Codec that was fitted to the library.
        encoder: Condition encoder that embedded its subjects: a folder or a name.
        out: Synthesizer folder to write.
        base: Base model: a pipeline folder, or hub:owner/name.
        residual_of: Pretrained synthesizer whose prediction diffusion corrects: it then learns what
            that lacks, and how far it scatters.
        strength: Multiplies what the synthesizer's adapters do.
        temperature: Weight of the synthesizer's noise, such as 0.5 for more similarity.
        trigger: What calls the subject in a prompt, such as 'sks person'; told in files.
        watch_images: Subjects' images, as collect takes them: with each row of metrics samples are
            made of some that are not learned from. Needs the base model's weights.
        run_folder: Folder for checkpoints and metrics; the same folder resumes.
        training: Of the hypernetwork.
    """

    group: ClassVar[str] = "Make a synthesizer"
    shared: ClassVar[bool] = True

    codec: Path
    encoder: str
    out: Out
    base: str = "bundle/base"
    residual_of: str | None = None
    strength: float = 1.0
    temperature: Annotated[float, Field(ge=0)] = 1.0
    trigger: str = TRIGGER
    watch_images: str | None = None
    run_folder: Annotated[Path, arg(name="run")] = Path("runs/train")
    training: Annotated[HypernetConfig, Flat, AvoidSubcommands] = field(
        default_factory=HypernetConfig
    )

    def run(self) -> Path:
        """Train, and write the synthesizer."""
        from lorasynth.base import BaseModel
        from lorasynth.base.compatibility import require_fits, require_made_for
        from lorasynth.codec import load_codec
        from lorasynth.collect.embedding import column_of
        from lorasynth.condition import load_encoder
        from lorasynth.core.atomic import make_parent
        from lorasynth.core.device import pick_device
        from lorasynth.core.learned import learned_from
        from lorasynth.engine.processes import Processes, end_of_launched
        from lorasynth.hypernet.library_data import training_set
        from lorasynth.hypernet.train import train
        from lorasynth.library import Library
        from lorasynth.synthesizer import Synthesizer

        self.require_free(self.out)
        make_parent(self.out, self.run_folder)
        device = pick_device(self.device)
        opened, embedder = Library.open(self.library), load_encoder(self.encoder)
        codec, adapters = load_codec(self.codec), opened.training(self.split)
        model = BaseModel.load(self.base, "meta")
        require_made_for(model, opened.info.base_fingerprint, f"library {self.library}")
        require_fits(model, opened.layout)
        around, column = self._around(model), column_of(embedder)
        data: TrainingSet = training_set(adapters, codec, column)
        if self.split != "all" and (held_out := opened.held_out()) is not None:
            data = replace(data, held_out=training_set(held_out, codec, column))
        learned = learned_from(adapters.ids) | codec.learned
        learned |= frozenset() if around is None else around.learned

        def whole(hypernet: "LatentDiffusion") -> Synthesizer:
            parts = (model, opened.layout, embedder, hypernet, codec)
            return replace(
                Synthesizer.of(*parts, trigger_phrase=self.trigger),
                base_fingerprint=opened.info.base_fingerprint,
                strength=self.strength,
                temperature=self.temperature,
                learned=learned,
            )

        hypernet = train(
            data,
            self.training,
            probes=[] if self.watch_images is None else [self._samples(whole, embedder, learned)],
            anchor=None if around is None else around.regression_in(codec),
            checkpoint=self.run_folder / "hypernet.safetensors",
            device=device,
        )
        if Processes.here(device).is_first:
            whole(hypernet).save(self.out)
            print(f"{self.out}: trained on {len(adapters)} adapters")
        end_of_launched()
        return self.out

    def _samples(
        self, whole: "Callable[[Any], Synthesizer]", encoder: "ConditionEncoder", learned: "Learned"
    ) -> "Probe":
        """What makes samples with the synthesizer as it is."""
        from lorasynth.base import BaseModel
        from lorasynth.collect.sheet import Watched
        from lorasynth.core.device import pick_device
        from lorasynth.core.learned import learned_from
        from lorasynth.images import subjects_in

        base = BaseModel.load(self.base, pick_device(self.device))
        source = subjects_in(str(self.watch_images), size=base.image_size)
        ids = [name for name in source.ids if not learned_from([name]) <= learned]
        watched = Watched(base, encoder, source, ids, self.run_folder / "samples")
        names = [subject.id for subject in watched.subjects]

        def probe(step: int, model: "LatentDiffusion") -> "Mapping[str, float]":
            factors = whole(copy.deepcopy(model)).synthesise(watched.conditions, names)
            return watched(factors, step)

        return probe

    def _around(self, base: "BaseModel") -> "Synthesizer | None":
        from lorasynth.base.compatibility import require_made_for
        from lorasynth.synthesizer import Synthesizer

        if self.residual_of is None:
            return None
        found = Synthesizer.from_pretrained(self.residual_of)
        require_made_for(base, found.base_fingerprint, f"synthesizer {self.residual_of}")
        return found
