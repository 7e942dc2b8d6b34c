"""`lorasynth synth`: images of a subject in, a LoRA file out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasynth.commands.options import Device, Seed
from lorasynth.core.errors import ConfigError, ImageError
from lorasynth.core.progress import console

if TYPE_CHECKING:
    from lorasynth.synthesizer import Stages

_PHOTOS = typer.Argument(
    metavar="PHOTO...",
    help="Images of one subject, or a folder of them, or a folder with a folder for each of "
    "several subjects.",
    show_default=False,
)
Photos = Annotated[list[Path], _PHOTOS]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="LoRA file (peft: folder) to write; for several subjects a folder."
    ),
]
Where = Annotated[str, typer.Option(help="Synthesizer: a folder, or hub:owner/name.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="auto: what diffusers and ComfyUI both read exactly; or kohya, diffusers, comfyui, "
        "peft.",
    ),
]
Guidance = Annotated[float | None, typer.Option(help="Weight of the condition.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps, at most 30.")]
Temperature = Annotated[
    float | None,
    typer.Option(help="Weight of the noise: 1 samples, less keeps nearer to the likeliest.", min=0),
]
Face = Annotated[
    int | None,
    typer.Option(
        help="Which face of each photo, counted from the left, from 1; default: the largest.",
        min=1,
    ),
]


Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first subject that cannot be used.")
]
Attribute = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="What the subject has, for a synthesizer that is conditioned on attributes, with "
        "photos or without; may be repeated.",
    ),
]


def synth(
    out: Out,
    photos: Annotated[list[Path] | None, _PHOTOS] = None,
    synthesizer: Where = "bundle/synthesizer",
    file_format: Format = "auto",
    seed: Seed = 0,
    guidance: Guidance = None,
    steps: Steps = None,
    temperature: Temperature = None,
    face: Face = None,
    attribute: Attribute = None,
    strict: Strict = False,
    device: Device = "auto",
) -> None:
    """Make a LoRA file for the subject of one or several images.

    Of several subjects, one that cannot be used is left out and named; the exit status is 0 if any
    file was written, and 2 if none was.

    Consent: of a person only with that person's consent. Every file says that it is synthesised.
    """
    import torch

    from lorasynth.adapter.files import get_format
    from lorasynth.core.device import pick_device
    from lorasynth.synthesizer import Stages, Synthesizer

    stages = Stages()
    writer = get_format(file_format)
    subjects = subjects_of(photos, out, writer.suffix) if photos else {out: []}
    for path in subjects:
        writer.target(path)
    facts = dict(map(_fact, attribute or []))
    with stages.stage("load"):
        synthesise = Synthesizer.from_pretrained(synthesizer, device=pick_device(device))
    if synthesise.encoder.looks:
        console.print(f"{synthesizer} knows {synthesise.knows}.", soft_wrap=True)
    conditions, left_out = {}, {}
    for path, images in subjects.items():
        try:
            conditions[path] = synthesise.embed(images, stages, face, facts)
        except ImageError as error:
            if strict or len(subjects) == 1:
                raise
            left_out[path.stem] = error
    written = synthesise.write_conditions(
        torch.stack(list(conditions.values())) if conditions else torch.zeros(0, 0),
        list(conditions),
        file_format,
        seed=seed,
        guidance=guidance,
        steps=steps,
        temperature=temperature,
        stages=stages,
    )
    print_times(stages)
    for path in written:
        typer.echo(path)
    for name, reason in left_out.items():
        typer.echo(f"left out {name}: {reason}", err=True)
    if left_out:
        typer.echo(f"{len(written)} subjects written, {len(left_out)} left out", err=True)
    if not written:
        raise ImageError(
            f"a subject must have photos that can be used, but none of the {len(left_out)} has"
        )


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
    from lorasynth.images.folders import Tally, images_in, subjects_below

    if len(photos) > 1 or not photos[0].is_dir():
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
