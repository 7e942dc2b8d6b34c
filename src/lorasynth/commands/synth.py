"""`lorasynth synth`: photos of a subject in, a LoRA file out."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional

from lorasynth.commands.shared import Repeated, WithFormat
from lorasynth.core.command import Command, OnDevice, Out, Seeded
from lorasynth.core.errors import ConfigError, ImageError
from lorasynth.core.progress import console

if TYPE_CHECKING:
    from torch import Tensor

    from lorasynth.synthesizer import Stages, Synthesizer


@dataclass(frozen=True, kw_only=True)
class WithSynthesizer:
    """The synthesizer, and how it samples.

    Attributes:
        synthesizer: Synthesizer: a folder, or hub:owner/name.
        guidance: Weight of the condition; default: the synthesizer's.
        steps: Solver steps; default: the synthesizer's.
        temperature: Sampling temperature: 1 = full diversity, 0 = deterministic; default: the
            synthesizer's.
    """

    synthesizer: str = "bundle/synthesizer"
    guidance: float | None = None
    steps: Annotated[int, Field(ge=1, le=30)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True, kw_only=True)
class Synth(Command, WithFormat, WithSynthesizer, Seeded, OnDevice):
    """Make a LoRA file for the subject of one or several photos.

    Of a folder, photos that cannot be used give way to the others of their subject, and a subject
    without one is left out; both are named. The exit status is 0 if any file was written, and 2 if
    none was.

    Consent: of a person only with that person's consent. Every file says that it is synthesised.

    Attributes:
        photos: Photos of one subject, or a folder of them, or a folder with a folder for each of
            several subjects.
        out: LoRA file (peft: folder) to write; for several subjects a folder.
        face: Which face of each photo, counted from the left, from 1; default: the largest.
        attribute: NAME=VALUE of the subject, for a synthesizer that is conditioned on attributes;
            repeatable.
        strict: Stop at the first photo that cannot be used.
    """

    group: ClassVar[str] = "Use"

    photos: Positional[tuple[Path, ...]] = ()
    out: Out
    face: Annotated[int, Field(ge=1)] | None = None
    attribute: Repeated = ()
    strict: bool = False

    def run(self) -> list[Path]:
        """Write the files; their paths."""
        import torch

        from lorasynth.adapter.files import FORMATS
        from lorasynth.core.device import pick_device
        from lorasynth.synthesizer import Stages, Synthesizer

        stages, writer = Stages(), FORMATS.get(self.format)
        subjects = subjects_of(self.photos, self.out, writer.suffix)
        for path in subjects:
            writer.target(path)
        facts = dict(map(_fact, self.attribute))
        with stages.stage("load"):
            synthesizer = Synthesizer.from_pretrained(
                self.synthesizer, device=pick_device(self.device)
            )
        if synthesizer.encoder.looks:
            console.print(f"{self.synthesizer} knows {synthesizer.knows}.", soft_wrap=True)
        conditions, left_out = self._conditions(synthesizer, subjects, facts, stages)
        written = synthesizer.write_conditions(
            torch.stack(list(conditions.values())) if conditions else torch.zeros(0, 0),
            list(conditions),
            self.format,
            seed=self.seed,
            guidance=self.guidance,
            steps=self.steps,
            temperature=self.temperature,
            stages=stages,
        )
        print_times(stages)
        for path in written:
            print(path)
        for name, reason in left_out.items():
            console.print(f"left out {name}: {reason}", markup=False, soft_wrap=True)
        if left_out:
            console.print(f"{len(written)} subjects written, {len(left_out)} left out")
        if not written:
            raise ImageError(
                f"a subject must have photos that can be used, but none of the {len(left_out)} has"
            )
        return written

    def _conditions(
        self,
        synthesizer: "Synthesizer",
        subjects: dict[Path, list[Path]],
        facts: dict[str, str],
        stages: "Stages",
    ) -> "tuple[dict[Path, Tensor], dict[str, ImageError]]":
        """The condition of each subject by its file, and why others are left out, by their names.

        Raises:
            ImageError: the only subject cannot be used, or with `strict` the first that cannot.
        """
        conditions, left_out = {}, {}
        in_folder = any(path.is_dir() for path in self.photos)
        embed = partial(synthesizer.embed, stages=stages, face=self.face, facts=facts)
        for path, images in subjects.items():
            try:
                conditions[path] = embed(images)
            except ImageError as error:
                if self.strict or not in_folder:
                    raise
                usable = _usable(images, embed) if len(images) > 1 else []
                if usable:
                    conditions[path] = embed(usable)
                elif len(subjects) == 1:
                    raise
                else:
                    left_out[path.stem] = error
        return conditions, left_out


def _usable(images: Sequence[Path], embed: "Callable[[Path], Tensor]") -> list[Path]:
    """The images of a subject that can be embedded; the others are named, with the reason."""
    usable = []
    for image in images:
        try:
            embed(image)
        except ImageError as error:
            console.print(f"passed over: {error}", markup=False, soft_wrap=True)
        else:
            usable.append(image)
    return usable


def _fact(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--attribute must be NAME=VALUE, such as glasses=round, but is {text!r}")
    return name, value


def subjects_of(photos: Sequence[Path], out: Path, suffix: str) -> dict[Path, list[Path]]:
    """What to write for each subject, named with `suffix` if there are several -> its images.

    Raises:
        ImageError: a folder has no images, neither itself nor in its subfolders.
    """
    from lorasynth.images.folders import images_in, subjects_below
    from lorasynth.images.indexed import Tally

    if len(photos) != 1 or not photos[0].is_dir():
        return {out: list(photos)}
    [folder], tally = photos, Tally()
    if found := images_in(folder, tally):
        tally.subjects, subjects = 1, {out: found}
    else:
        tally = Tally()
        below = subjects_below(folder, tally)
        subjects = {out / f"{name}{suffix}": paths for name, paths in below.items()}
    tally.say(folder)
    if not subjects:
        raise ImageError(
            f"a folder of subjects must hold images, or folders of images, but {folder} has "
            "none: check the path"
        )
    return subjects


def print_times(stages: "Stages") -> None:
    """Show the seconds of each stage."""
    from rich.table import Table

    table = Table("stage", "seconds")
    table.columns[1].justify = "right"
    for name, seconds in stages.seconds.items():
        table.add_row(name, f"{seconds:.3f}")
    console.print(table)
