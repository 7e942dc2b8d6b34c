"""`lorasynth refine`, `blend` and `invert`: adapters by gradient descent on a few images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional

from lorasynth.commands.edit import InLatents
from lorasynth.commands.shared import PORTRAIT, WithBase, WithFormat
from lorasynth.commands.synth import print_times, subjects_of
from lorasynth.commands.training import WithSheet
from lorasynth.core.command import Command, Flat, Out, Seeded
from lorasynth.core.errors import ConfigError
from lorasynth.engine.recipe import OptimizerConfig, Recipe
from lorasynth.optimise.config import REFINE, CheckConfig, InversionConfig, MixtureConfig

#: Of one subject, or of several.
Photos = Positional[Annotated[tuple[Path, ...], Field(min_length=1)]]

if TYPE_CHECKING:
    from torch import Tensor

    from lorasynth.adapter import AdapterMetadata, Factors, Layout
    from lorasynth.condition import ConditionEncoder
    from lorasynth.engine import OnStep, Trainable
    from lorasynth.library import Library
    from lorasynth.optimise import Decode
    from lorasynth.synthesizer import Synthesizer


@dataclass(frozen=True, kw_only=True)
class FromImages(Command, WithFormat, WithBase, Seeded):
    """What is learned, and where it goes.

    Attributes:
        out: LoRA file (peft: folder) to write; for several subjects a folder.
        caption: Of images that have no caption of their own.
    """

    group: ClassVar[str] = "Use"

    out: Out
    caption: str = PORTRAIT

    def seeded(self, config: OptimizerConfig) -> OptimizerConfig:
        """A config with the command's seed."""
        return replace(config, seed=self.seed or config.seed)


class _Job:
    """The images to learn from, the base model to learn through, and where the files go.

    All that can be refused is, before anything is loaded.
    """

    def __init__(self, command: FromImages, photos: Sequence[Path]) -> None:
        from lorasynth.adapter.files import FORMATS
        from lorasynth.core.atomic import make_parent
        from lorasynth.synthesizer import Stages

        self.command, self.stages = command, Stages()
        self.writer = FORMATS.get(command.format)
        self.found = subjects_of(photos, command.out, self.writer.suffix)
        for path in self.found:
            make_parent(self.writer.target(path))

    def load(self, encoder: "ConditionEncoder | None", fingerprint: str, whose: str) -> None:
        """Load the base model, which must be the one of that fingerprint, and the images."""
        from lorasynth.base.compatibility import require_made_for
        from lorasynth.condition import framed_subject
        from lorasynth.images.folders import read_subject

        with self.stages.stage("load"):
            self.base = self.command.load_base()
            require_made_for(self.base, fingerprint, whose)
            looking = [] if encoder is None else [encoder]
            read = (read_subject(None, one, self.command.caption) for one in self.found.values())
            self.subjects = [framed_subject(one, self.base.image_size, looking) for one in read]

    @contextmanager
    def progress(self, title: str, steps: int) -> "Iterator[OnStep]":
        """Show each step and the mean loss, and time them all."""
        from lorasynth.core.progress import progress

        with self.stages.stage(title), progress(title, steps) as advance:
            yield lambda _, losses: advance(note=f"loss {losses.mean().item():.4f}")

    def descend(self, trainable: "Trainable", how: str) -> "Factors":
        """Optimise for all subjects at once."""
        from lorasynth.engine import descend

        with self.progress(how, trainable.config.steps) as on_step:
            return descend(self.base, self.subjects, trainable, on_step=on_step).factors

    def write(
        self, factors: "Factors", layout: "Layout", metadata: "AdapterMetadata", **facts: str
    ) -> list[Path]:
        """Write a file for each subject; the facts stand in its metadata."""
        from lorasynth.adapter import Adapter, map_factors, unstack

        stated = replace(metadata, extra=metadata.extra | facts)
        singles = unstack(map_factors(lambda part: part.cpu(), factors))
        with self.stages.stage("write"):
            for single, out in zip(singles, self.found, strict=True):
                self.writer.write(Adapter(single, stated, layout.kernels), out)
        print_times(self.stages)
        for out in self.found:
            print(out)
        return list(self.found)


@dataclass(frozen=True, kw_only=True)
class Refine(FromImages, WithSheet):
    """Train a LoRA file on with a few images of its subject; never make it worse.

    Unless --caption is given, the base model says which background, clothes and expression photos
    without captions show, so that these are not learned. With an encoder, images are made every few
    steps, and the adapter most like the photos is kept; if none is more like them than the first
    file's, that is written unchanged.

    Consent: of people only with their consent.

    Example: lorasynth refine me.safetensors photo.png -o better.safetensors --steps 50

    Attributes:
        lora: LoRA file to start from.
        photos: Photos of its subject, or a folder of them.
        encoder: Compares images with the photos, and finds the face, around which these are cut: a
            folder, a name that `lorasynth encoders list` shows, or none; default: the shipped one,
            if the LoRA file says that it was made with that. Without one all steps are made, and
            photos are cut where their detail is.
        recipe: How it is trained.
        check: How images are compared with the photos.
    """

    lora: Positional[Path]
    photos: Photos
    encoder: str | None = None
    recipe: Annotated[Recipe, Flat] = REFINE
    check: CheckConfig = CheckConfig()

    def run(self) -> list[Path]:
        """Write the refined adapter; its path."""
        from lorasynth.adapter import Adapter, map_factors
        from lorasynth.core.progress import note
        from lorasynth.images.files import SUFFIXES
        from lorasynth.optimise import Watching, captioned, refine

        if self.lora.suffix.lower() in SUFFIXES:
            raise ConfigError(
                f"refine takes the LoRA first and its images after, but got {self.lora}"
            )
        adapter, job = Adapter.load(self.lora), _Job(self, self.photos)
        if len(job.found) > 1:
            raise ConfigError(
                f"a LoRA is refined with images of its one subject, but got {len(job.found)} "
                "folders of images: give one"
            )
        encoder = self._load_encoder(adapter.metadata)
        job.load(encoder, adapter.metadata.base_fingerprint, f"LoRA file {self.lora}")
        self.draw_sheet(job.subjects)
        recipe = replace(self.recipe, seed=self.seed or self.recipe.seed)
        first = map_factors(lambda part: part[None], adapter.factors)
        [subject] = job.subjects
        with job.stages.stage("captions"):
            subject = captioned(job.base, subject, first)
        with job.progress("refine", recipe.steps) as on_step:
            watching = None if encoder is None else Watching(encoder, self.check)
            made = refine(job.base, recipe, subject, first, watching, on_step)
        looks = "" if encoder is None else encoder.name
        for caption in dict.fromkeys(subject.captions):
            note(f"trained with the caption: {caption}")
        if made.before is not None:
            before, after = f"{made.before:.4f}", f"{made.after:.4f}"
            same = "no better after: the first file's adapter is written unchanged"
            became = f"{after} after {made.step} steps" if made.step else same
            note(f"similarity to the photos by {looks}: {before} before, {became}")
        else:
            note(
                "no encoder compared images with the photos, so the file may be better or worse: "
                "--encoder"
            )
        metadata = made.stated(adapter.metadata, looks)
        return job.write(made.factors, adapter.layout, metadata)

    def _load_encoder(self, metadata: "AdapterMetadata") -> "ConditionEncoder | None":
        """The encoder that is asked for; else the shipped one, of files that were made with it."""
        from lorasynth.condition import load_encoder
        from lorasynth.core.device import pick_device
        from lorasynth.core.places import BUNDLE, local

        made_with, source = metadata.extra.get("encoder"), self.encoder
        if source is None and made_with:
            source = str(local(f"{BUNDLE}/synthesizer/encoder"))
            source = source if Path(source).is_dir() else None
        if source in (None, "none"):
            return None
        encoder = load_encoder(source, pick_device(self.device))
        if self.encoder is None and encoder.name != made_with:
            return None
        if not encoder.looks:
            raise ConfigError(f"--encoder must look at photos, but {encoder.name!r} looks at none")
        return encoder


@dataclass(frozen=True, kw_only=True)
class _InSpace(FromImages, InLatents):
    """What is found in a synthesizer's latents."""

    def load_for(self, job: _Job) -> "tuple[Synthesizer, AdapterMetadata, Tensor]":
        """The synthesizer on the job's device, what its files state, and known latents (N, k)."""
        synthesizer, space = self.load_space()
        metadata = synthesizer.metadata(self.seed, strength=1.0)
        job.load(synthesizer.encoder, metadata.base_fingerprint, "synthesizer")
        synthesizer.codec.to(job.base.device)
        return synthesizer, metadata, space.library.latents


@dataclass(frozen=True, kw_only=True)
class Blend(_InSpace):
    """Mix the adapters of a library so that the mixture denoises the images best.

    Consent: of people only with their consent.

    Example: lorasynth optimise blend photo.png -o me.safetensors --simplex --steps 100

    Attributes:
        photos: Photos of one subject, or a folder of them, or a folder with a folder for each of
            several subjects.
        over: What is mixed: latents, or adapters (then --library holds adapters).
        mixture: What mixtures may be.
    """

    photos: Photos
    over: Literal["latents", "adapters"] = "latents"
    mixture: Annotated[MixtureConfig, Flat] = MixtureConfig()

    def run(self) -> list[Path]:
        """Write the mixtures; their paths."""
        from lorasynth.adapter import AdapterMetadata
        from lorasynth.library import Library
        from lorasynth.optimise import Mixture

        job = _Job(self, self.photos)
        config = replace(self.mixture, optimizer=self.seeded(self.mixture.optimizer))
        decode: Decode
        if self.over == "latents":
            synthesizer, metadata, rows = self.load_for(job)
            layout, decode = synthesizer.layout, synthesizer.decode
        else:
            library = Library.open(self.library)
            _require_room(library)
            metadata = AdapterMetadata(
                base_fingerprint=library.info.base_fingerprint,
                trigger_phrase=PORTRAIT.split()[-1],
                synthesised=True,
            )
            job.load(None, metadata.base_fingerprint, "library")
            rows, layout, decode = library.all_vectors(), library.layout, library.layout.unflatten
        made = job.descend(Mixture(config, len(job.subjects), rows, decode), "blend")
        return job.write(made, layout, metadata, optimised=f"blend {config.optimizer.steps}")


def _require_room(library: "Library") -> None:
    """Refuse to read vectors that do not fit into memory.

    Raises:
        ConfigError: they do not.
    """
    import torch

    from lorasynth.engine.fleet_size import free_memory

    needed, free = 4 * len(library) * library.width, free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise ConfigError(
            f"--over adapters must have all {len(library)} adapters in memory, but they take "
            f"{needed * 1e-9:.1f} GB and {free * 1e-9:.1f} GB are free: use --over latents"
        )


@dataclass(frozen=True, kw_only=True)
class Invert(_InSpace):
    """Find the latent whose adapter denoises the images best, under the library's distribution.

    Consent: of people only with their consent.

    Example: lorasynth optimise invert photo.png -o me.safetensors --steps 400 --prior 0

    Attributes:
        photos: Photos of one subject, or a folder of them, or a folder with a folder for each of
            several subjects.
        start: Where the latents start: at the mean, or where the synthesizer puts the images.
        inversion: Which latents are likely.
    """

    photos: Photos
    start: Literal["mean", "synthesised"] = "mean"
    inversion: Annotated[InversionConfig, Flat] = InversionConfig()

    def run(self) -> list[Path]:
        """Write the decoded latents; their paths."""
        import torch

        from lorasynth.optimise import Inversion

        job = _Job(self, self.photos)
        config = replace(self.inversion, optimizer=self.seeded(self.inversion.optimizer))
        synthesizer, metadata, known = self.load_for(job)
        begin = None
        if self.start == "synthesised":
            embeddings = torch.stack([synthesizer.embed(paths) for paths in job.found.values()])
            names = [subject.id for subject in job.subjects]
            begin = synthesizer.latents(embeddings, names, seed=self.seed)
        found = Inversion(config, len(job.subjects), known, synthesizer.decode, begin)
        made = job.descend(found, "invert")
        how = f"invert {config.optimizer.steps}"
        return job.write(made, synthesizer.layout, metadata, optimised=how)
