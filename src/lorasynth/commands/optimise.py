"""`lorasynth blend`, `invert` and `refine`: adapters by gradient descent on a few images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from lorasynth.commands.known import Known, Where, space_of
from lorasynth.commands.options import PORTRAIT, Base, Caption, Device, Seed, Settings, override
from lorasynth.commands.synth import Format, Out, Photos, print_times, subjects_of
from lorasynth.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasynth.adapter import AdapterMetadata, Factors, Layout
    from lorasynth.adapter.files import LoraFormat
    from lorasynth.condition import ConditionEncoder
    from lorasynth.engine.loop import OnStep
    from lorasynth.images import Subject
    from lorasynth.library import Library
    from lorasynth.optimise import Coordinates, Decode

Steps = Annotated[int | None, typer.Option(help="Optimiser steps.", min=1)]


def blend(
    photos: Photos,
    out: Out,
    over: Annotated[
        str, typer.Option(help="latents, or adapters: then --library holds adapters.")
    ] = "latents",
    caption: Caption = PORTRAIT,
    synthesizer: Where = "bundle/synthesizer",
    library: Known = Path("bundle/library"),
    base: Base = "bundle/base",
    file_format: Format = "auto",
    steps: Steps = None,
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Mix the adapters of a library so that the mixture denoises the images best.

    Consent: of people only with their consent.

    Example: lorasynth blend photo.png -o me.safetensors --set simplex=true --steps 100
    """
    from lorasynth.adapter import AdapterMetadata
    from lorasynth.images.contract import TRIGGER
    from lorasynth.library import Library
    from lorasynth.optimise import Mixture, MixtureConfig

    if over not in ("latents", "adapters"):
        raise ConfigError(f"--over must be latents or adapters, but is {over!r}")
    config = override(MixtureConfig(), _descent(steps, seed, settings))
    places = _Places.of(photos, out, file_format)
    loaded = space_of(synthesizer, library) if over == "latents" else None
    encoder = None if loaded is None else loaded[0].encoder
    job = _Job(places, caption, base, device, encoder)
    decode: Decode
    if loaded is not None:
        synth, space = loaded
        synth.codec.to(job.base.device)
        rows, layout, decode = space.library.latents, synth.layout, synth.decode
        metadata, whose = synth.metadata(seed, strength=1.0), "synthesizer"
    else:
        opened = Library.open(library)
        _require_room(opened)
        rows, layout, decode = opened.all_vectors(), opened.layout, opened.layout.unflatten
        metadata = AdapterMetadata(
            base_fingerprint=opened.info.base_fingerprint, trigger_phrase=TRIGGER, synthesised=True
        )
        whose = "library"
    mixture = Mixture(config, len(job.subjects), rows, decode)
    job.descend(mixture, layout, metadata, "blend", whose)


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


def invert(
    photos: Photos,
    out: Out,
    start: Annotated[str, typer.Option(help="mean, or synthesised: from the images.")] = "mean",
    caption: Caption = PORTRAIT,
    synthesizer: Where = "bundle/synthesizer",
    library: Known = Path("bundle/library"),
    base: Base = "bundle/base",
    file_format: Format = "auto",
    steps: Steps = None,
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find the latent whose adapter denoises the images best, under the library's spread.

    Consent: of people only with their consent.

    Example: lorasynth invert photo.png -o me.safetensors --steps 400 --set prior=0
    """
    import torch

    from lorasynth.optimise import Inversion, InversionConfig

    if start not in ("mean", "synthesised"):
        raise ConfigError(f"--start must be mean or synthesised, but is {start!r}")
    config = override(InversionConfig(), _descent(steps, seed, settings))
    places = _Places.of(photos, out, file_format)
    synth, space = space_of(synthesizer, library)
    job = _Job(places, caption, base, device, synth.encoder)
    known = space.library.latents
    begin = None
    if start == "synthesised":
        embeddings = torch.stack([synth.embed(paths) for paths in job.paths])
        names = [subject.id for subject in job.subjects]
        begin = synth.latents(embeddings, names, seed=seed)
    synth.codec.to(job.base.device)
    inversion = Inversion(config, len(job.subjects), known, synth.decode, begin)
    job.descend(inversion, synth.layout, synth.metadata(seed, strength=1.0), "invert")


def refine(
    lora: Annotated[Path, typer.Argument(metavar="LORA", help="What to start from.")],
    photos: Photos,
    out: Out,
    caption: Caption = PORTRAIT,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder that finds the face, around which photos are cut: a folder, or a name "
            "that `lorasynth conditions` lists; default: they are cut where their detail is."
        ),
    ] = None,
    base: Base = "bundle/base",
    file_format: Format = "auto",
    steps: Steps = None,
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a LoRA file on with a few images of its subject.

    Consent: of people only with their consent.

    Example: lorasynth refine me.safetensors photo.png -o better.safetensors --steps 50
    """
    from lorasynth.adapter import Adapter, map_factors
    from lorasynth.base.compatibility import require_made_for
    from lorasynth.condition import load_encoder
    from lorasynth.engine.fleet import train_fleet
    from lorasynth.engine.recipe import PRESETS
    from lorasynth.images.files import SUFFIXES

    if lora.suffix.lower() in SUFFIXES:
        raise ConfigError(f"refine takes the LoRA first and its images after, but got {lora}")
    adapter = Adapter.load(lora)
    stated = [] if steps is None else [f"steps={steps}"]
    recipe = override(PRESETS["refine"], [*stated, f"seed={seed}", *(settings or [])])
    places = _Places.of(photos, out, file_format)
    looking = None if encoder is None else load_encoder(encoder)
    job = _Job(places, caption, base, device, looking)
    if len(job.subjects) > 1:
        raise ConfigError(
            f"a LoRA is refined with images of its one subject, but got {len(job.subjects)} "
            "folders of images: give one"
        )
    require_made_for(job.base, adapter.metadata.base_fingerprint, f"LoRA file {lora}")
    anchor = map_factors(lambda part: part[None].float(), adapter.factors)
    with job.progress("refine", recipe.steps) as on_step:
        trained = train_fleet(job.base, recipe, job.subjects, anchor=anchor, on_step=on_step)
    # Trained further, its update is no longer a multiple of what was decoded.
    extra = {name: text for name, text in adapter.metadata.extra.items() if name != "strength"}
    metadata = replace(adapter.metadata, extra=extra)
    job.write(trained.factors, adapter.layout, metadata, f"refine {recipe.steps}")


class _Places(NamedTuple):
    """How files are written, and the photos that each is made of."""

    writer: "LoraFormat"
    found: dict[Path, list[Path]]

    @classmethod
    def of(cls, photos: Sequence[Path], out: Path, file_format: str) -> "_Places":
        """Find the photos, and check that all can be written, before anything is loaded.

        Raises:
            LorasynthError: a folder has no photos, or an output cannot be written or is misnamed.
        """
        from lorasynth.adapter.files import get_format
        from lorasynth.core.atomic import make_parent

        writer = get_format(file_format)
        found = subjects_of(photos, out, writer.suffix)
        for path in found:
            make_parent(writer.target(path))
        return cls(writer, found)


class _Job:
    """Images to learn from, the base model to learn through, and where the files go."""

    def __init__(
        self,
        places: "_Places",
        caption: str,
        base: str,
        device: str,
        encoder: "ConditionEncoder | None" = None,
    ) -> None:
        from lorasynth.base import BaseModel
        from lorasynth.condition import framed_subject
        from lorasynth.core.device import pick_device
        from lorasynth.images.folders import read_subject
        from lorasynth.synthesizer import Stages

        self.writer, found = places
        self.stages = Stages()
        with self.stages.stage("load"):
            self.base = BaseModel.load(base, pick_device(device))
        self.outs, self.paths = list(found), list(found.values())
        looking = [] if encoder is None else [encoder]
        self.subjects: list[Subject] = [
            framed_subject(read_subject(None, images, caption), self.base.image_size, looking)
            for images in self.paths
        ]

    @contextmanager
    def progress(self, title: str, steps: int) -> "Iterator[OnStep]":
        """Show each step and the mean loss, and time them all."""
        from lorasynth.core.progress import progress

        with self.stages.stage(title), progress(title, steps) as advance:
            yield lambda _, losses: advance(note=f"loss {losses.mean().item():.4f}")

    def descend(
        self,
        coordinates: "Coordinates",
        layout: "Layout",
        metadata: "AdapterMetadata",
        how: str,
        whose: str = "synthesizer",
    ) -> None:
        """Optimise for all subjects at once, and write a file for each.

        Args:
            coordinates: what is optimised.
            layout: of their adapters.
            metadata: of the files.
            how: said while it is done, and noted in them.
            whose: adapters the base model must fit.
        """
        from lorasynth.base.compatibility import require_made_for
        from lorasynth.optimise import personalise

        require_made_for(self.base, metadata.base_fingerprint, whose)
        with self.progress(how, coordinates.descent.steps) as on_step:
            made = personalise(self.base, self.subjects, coordinates, on_step=on_step)
        self.write(made.factors, layout, metadata, f"{how} {coordinates.descent.steps}")

    def write(
        self, factors: "Factors", layout: "Layout", metadata: "AdapterMetadata", how: str
    ) -> None:
        """Write a file for each subject; `how` is noted in its metadata."""
        from lorasynth.adapter import Adapter, map_factors, unstack

        stated = replace(metadata, extra=metadata.extra | {"optimised": how})
        singles = unstack(map_factors(lambda part: part.cpu(), factors))
        with self.stages.stage("write"):
            for single, out in zip(singles, self.outs, strict=True):
                self.writer.write(Adapter(single, stated, layout.kernels), out)
        print_times(self.stages)
        for out in self.outs:
            typer.echo(out)


def _descent(steps: int | None, seed: int, settings: Sequence[str] | None) -> list[str]:
    """Settings of a method's config, from options of their own and from `--set`."""
    stated = [] if steps is None else [f"descent.steps={steps}"]
    return [*stated, f"descent.seed={seed}", *(settings or [])]
