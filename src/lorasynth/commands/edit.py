"""`lorasynth edit`, `interpolate` and `sample`: adapters as points in a codec's latents."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasynth.commands.known import Known, Where, space_of
from lorasynth.commands.options import PORTRAIT, Base, Device, Seed
from lorasynth.commands.synth import Format
from lorasynth.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasynth.adapter import Adapter

LoraFile = Annotated[Path, typer.Argument(metavar="LORA", help="LoRA file.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="LoRA file (peft: folder) to write.")]
Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder for the LoRA files.")]
Strip = Annotated[
    Path | None, typer.Option(help="PNG to write: an image made with each, in a row.")
]
Prompt = Annotated[str, typer.Option(help="Of the strip's images.")]


def edit(
    lora: LoraFile,
    out: Out,
    attribute: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=STEP",
            help="Attribute and by how much it rises: glasses=+1, hair:red=-0.3; may be repeated.",
        ),
    ],
    synthesizer: Where = "bundle/synthesizer",
    library: Known = Path("bundle/library"),
    base: Base = "bundle/base",
    file_format: Format = "auto",
    strip: Strip = None,
    prompt: Prompt = PORTRAIT,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Change attributes of an adapter's subject, all others kept.

    The strip shows the adapter as it was, and changed by a half, the whole and one and a half.

    Example: lorasynth edit me.safetensors --attribute glasses=+1 -o glasses.safetensors
    """
    from lorasynth.adapter import Adapter
    from lorasynth.adapter.files import get_format

    steps = dict(map(_step, attribute))
    writer = get_format(file_format)
    writer.target(out)
    adapter = Adapter.load(lora)
    _, space = space_of(synthesizer, library)
    change = space.direction(steps)
    stated = adapter.metadata.extra | {"edited": " ".join(attribute)}
    moved = space.moved(adapter, change)
    edited = replace(moved, metadata=replace(adapter.metadata, extra=stated))
    typer.echo(writer.write(edited, out))
    if strip is not None:
        shares = (0.0, 0.5, 1.0, 1.5)
        shown = [space.moved(adapter, share * change) for share in shares]
        _draw_strip(shown, strip, base, prompt, seed, device)


def _step(text: str) -> tuple[str, float]:
    """An attribute and by how much it rises."""
    name, _, size = text.partition("=")
    try:
        return name.strip(), float(size)
    except ValueError as error:
        raise ConfigError(
            f"--attribute must be NAME=STEP with a number, such as glasses=+1, but is {text!r}"
        ) from error


def interpolate(
    start: LoraFile,
    end: LoraFile,
    out: Folder,
    steps: Annotated[int, typer.Option(help="LoRA files, both ends included.", min=2)] = 7,
    path: Annotated[str, typer.Option(help="lerp or slerp.")] = "lerp",
    synthesizer: Where = "bundle/synthesizer",
    library: Known = Path("bundle/library"),
    base: Base = "bundle/base",
    file_format: Format = "auto",
    strip: Strip = None,
    prompt: Prompt = PORTRAIT,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write adapters on the way from one to another.

    Example: lorasynth interpolate a.safetensors b.safetensors --steps 7 -o between
    """
    from lorasynth.adapter import Adapter
    from lorasynth.edit import PATHS

    if path not in PATHS:
        raise ConfigError(f"--path must be one of {', '.join(PATHS)}, but is {path!r}")
    first, last = Adapter.load(start), Adapter.load(end)
    _, space = space_of(synthesizer, library)
    shares = [step / (steps - 1) for step in range(steps)]
    between = space.between(first, last, shares, PATHS[path])
    _write_all(between, out, file_format)
    if strip is not None:
        _draw_strip(between, strip, base, prompt, seed, device)


def sample(
    out: Folder,
    number: Annotated[int, typer.Option("-n", help="How many.", min=1)] = 4,
    prior: Annotated[
        str, typer.Option(help="gaussian, standard (a VAE's), convex, or diffusion.")
    ] = "diffusion",
    synthesizer: Where = "bundle/synthesizer",
    library: Known = Path("bundle/library"),
    base: Base = "bundle/base",
    file_format: Format = "auto",
    strip: Strip = None,
    prompt: Prompt = PORTRAIT,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Sample adapters unconditionally.

    gaussian draws each latent with the library's mean and standard deviation, standard from the
    standard normal distribution, convex mixes three of the library, and diffusion samples without a
    condition.

    Example: lorasynth sample --prior gaussian -n 8 -o samples --strip samples.png
    """
    from lorasynth.edit.priors import PRIORS
    from lorasynth.hypernet import LatentRegression

    if prior not in (known := ["diffusion", *PRIORS.names()]):
        raise ConfigError(f"--prior must be one of {', '.join(known)}, but is {prior!r}")
    loaded, space = space_of(synthesizer, library)
    names, strength = [f"{i:03d}" for i in range(number)], 1.0
    if prior == "diffusion":
        if isinstance(loaded.hypernet, LatentRegression):
            raise ConfigError(
                f"without a condition a synthesizer that is a regression, as {synthesizer} is, has "
                f"one answer only: give one that diffuses, or --prior {PRIORS.names()[0]}"
            )
        latents = loaded.latents(None, names, seed=seed, temperature=1.0)
        strength = loaded.strength  # of what the hypernetwork predicts; a prior needs none
    else:
        latents = PRIORS.get(prior)(space.library.latents, names, seed)
    metadata = loaded.metadata(seed)
    metadata = replace(metadata, extra=metadata.extra | {"prior": prior})
    made = space.adapters(latents, metadata, strength)
    _write_all(made, out, file_format)
    if strip is not None:
        _draw_strip(made, strip, base, prompt, seed, device)


def _write_all(adapters: "Sequence[Adapter]", folder: Path, file_format: str) -> None:
    from lorasynth.adapter.files import get_format

    writer = get_format(file_format)
    for i, adapter in enumerate(adapters):
        typer.echo(writer.write(adapter, folder / f"{i:03d}{writer.suffix}"))


def _draw_strip(
    adapters: "Sequence[Adapter]", path: Path, base: str, prompt: str, seed: int, device: str
) -> None:
    """One image with each adapter, from the same noise, as a PNG."""
    import torch

    from lorasynth.adapter import stack
    from lorasynth.base import BaseModel
    from lorasynth.base.compatibility import require_made_for
    from lorasynth.core.device import pick_device
    from lorasynth.images.png import contact_sheet, write_synthetic

    model = BaseModel.load(base, pick_device(device))
    require_made_for(model, adapters[0].metadata.base_fingerprint, "LoRA file")
    images = torch.cat(
        [model.sample([prompt], [seed], stack([adapter.factors])) for adapter in adapters]
    )
    write_synthetic(path, contact_sheet(images, len(adapters)), {"Description": prompt})
    typer.echo(path)
