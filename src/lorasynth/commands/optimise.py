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
from lorasynth.engine.recipe import PRESETS, OptimizerConfig, Recipe
from lorasynth.optimise.config import InversionConfig, MixtureConfig

#: Of one subject, or of several.
Photos = Positional[Annotated[tuple[Path, ...], Field(min_length=1)]]

if TYPE_CHECKING:
    from lorasynth.adapter import AdapterMetadata, Factors, Layout
    from lorasynth.condition import ConditionEncoder
    from lorasynth.engine import OnStep, Trainable
    from lorasynth.library import Library
    from lorasynth.optimise import Decode


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
        from lorasynth.adapter.files import get_format
        from lorasynth.core.atomic import make_parent
        from lorasynth.synthesizer import Stages

        self.command, self.stages = command, Stages()
        self.writer = get_format(command.format)
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
        self, factors: "Factors", layout: "Layout", metadata: "AdapterMetadata", how: str
    ) -> list[Path]:
        """Write a file for each subject; `how` is noted in its metadata."""
        from lorasynth.adapter import Adapter, map_factors, unstack

        stated = replace(metadata, extra=metadata.extra | {"optimised": how})
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
    """Train a LoRA file on with a few images of its subject.

    Consent: of people only with their consent.

    Example: lorasynth refine me.safetensors photo.png -o better.safetensors --steps 50

    Attributes:
        lora: LoRA file to start from.
        photos: Photos of its subject, or a folder of them.
        encoder: Encoder that finds the face, around which photos are cut: a folder, or a name that
            `lorasynth conditions` lists; default: they are cut where their detail is.
        recipe: How it is trained.
    """

    lora: Positional[Path]
    photos: Photos
    encoder: str | None = None
    recipe: Annotated[Recipe, Flat] = PRESETS["refine"]

    def run(self) -> list[Path]:
        """Write the refined adapter; its path."""
        from lorasynth.adapter import Adapter, map_factors
        from lorasynth.condition import load_encoder
        from lorasynth.engine import train_fleet
        from lorasynth.images.files import SUFFIXES

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
        encoder = None if self.encoder is None else load_encoder(self.encoder)
        job.load(encoder, adapter.metadata.base_fingerprint, f"LoRA file {self.lora}")
        self.draw_sheet(job.subjects)
        recipe = replace(self.recipe, seed=self.seed or self.recipe.seed)
        init = map_factors(lambda part: part[None].float(), adapter.factors)
        with job.progress("refine", recipe.steps) as on_step:
            trained = train_fleet(job.base, recipe, job.subjects, init=init, on_step=on_step)
        # Trained further, its update is no longer a multiple of what was decoded.
        extra = {name: text for name, text in adapter.metadata.extra.items() if name != "strength"}
        metadata = replace(adapter.metadata, extra=extra)
        return job.write(trained.factors, adapter.layout, metadata, f"refine {recipe.steps}")


@dataclass(frozen=True, kw_only=True)
class Blend(FromImages, InLatents):
    """Mix the adapters of a library so that the mixture denoises the images best.

    Consent: of people only with their consent.

    Example: lorasynth blend photo.png -o me.safetensors --simplex --steps 100

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
            synthesizer, space = self.load_space()
            metadata = synthesizer.metadata(self.seed, strength=1.0)
            job.load(synthesizer.encoder, metadata.base_fingerprint, "synthesizer")
            synthesizer.codec.to(job.base.device)
            rows, layout, decode = space.library.latents, synthesizer.layout, synthesizer.decode
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
        return job.write(made, layout, metadata, f"blend {config.optimizer.steps}")


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
class Invert(FromImages, InLatents):
    """Find the latent whose adapter denoises the images best, under the library's distribution.

    Consent: of people only with their consent.

    Example: lorasynth invert photo.png -o me.safetensors --steps 400 --prior 0

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
        synthesizer, space = self.load_space()
        metadata = synthesizer.metadata(self.seed, strength=1.0)
        job.load(synthesizer.encoder, metadata.base_fingerprint, "synthesizer")
        known, begin = space.library.latents, None
        if self.start == "synthesised":
            embeddings = torch.stack([synthesizer.embed(paths) for paths in job.found.values()])
            names = [subject.id for subject in job.subjects]
            begin = synthesizer.latents(embeddings, names, seed=self.seed)
        synthesizer.codec.to(job.base.device)
        decode = synthesizer.decode
        made = job.descend(Inversion(config, len(job.subjects), known, decode, begin), "invert")
        steps = config.optimizer.steps
        return job.write(made, synthesizer.layout, metadata, f"invert {steps}")
