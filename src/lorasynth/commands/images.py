"""`lorasynth images`: images made with LoRA files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasynth.commands.options import Base, Device, DType, Seed, Size, Slicing, load_base

if TYPE_CHECKING:
    from lorasynth.adapter import Factors
    from lorasynth.base import BaseModel

Prompts = Annotated[list[str], typer.Option("--prompt", help="Text; may be repeated.")]
Loras = Annotated[
    list[Path] | None,
    typer.Option("--lora", help="LoRA file; several are added; none: the base model alone."),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="One sheet if it ends with .png, else a folder.")
]
Other = Annotated[
    bool, typer.Option(help="Use a LoRA file that was made for another base model, if it fits.")
]


def images(
    prompt: Prompts,
    out: Out,
    lora: Loras = None,
    strength: Annotated[float, typer.Option(help="Multiplies what the LoRA files do.")] = 1.0,
    number: Annotated[int, typer.Option("-n", help="Images of each prompt.", min=1)] = 4,
    base: Base = "bundle/base",
    allow_other_base: Other = False,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(help="Sampler steps.", min=1)] = 20,
    guidance: Annotated[float, typer.Option(help="Weight of the prompt; 1 for none.")] = 3.0,
    dtype: DType = "float32",
    attention_slicing: Slicing = False,
    size: Size = None,
    device: Device = "auto",
) -> None:
    """Make images; their metadata says that they are synthetic.

    Example: lorasynth images --lora me.safetensors --prompt "a portrait of sks, smiling" -o me.png
    """
    from lorasynth.base import SamplingConfig
    from lorasynth.core.atomic import make_parent
    from lorasynth.images.png import contact_sheet, write_synthetic

    sheet = out.suffix.lower() == ".png"
    make_parent(out if sheet else out / "image.png")
    model = load_base(base, device, dtype, size, slicing=attention_slicing)
    factors = _factors(model, lora or [], strength, allow_other_base)
    prompts = [text for text in prompt for _ in range(number)]
    seeds = [seed + i for _ in prompt for i in range(number)]
    images = model.sample(prompts, seeds, factors, SamplingConfig(steps=steps, guidance=guidance))
    facts = {"Base": model.fingerprint, "Lora": ", ".join(path.name for path in lora or [])}
    if sheet:
        facts |= {"Description": "\n".join(prompt), "Seed": f"{seed} and following"}
        write_synthetic(out, contact_sheet(images, number), facts)
        typer.echo(out)
        return
    for i, image in enumerate(images):
        path = out / f"{i // number:02d}-{seeds[i]:06d}.png"
        write_synthetic(path, image, {**facts, "Description": prompts[i], "Seed": str(seeds[i])})
        typer.echo(path)


def _factors(
    model: "BaseModel", files: Sequence[Path], strength: float, allow_other_base: bool
) -> "Factors | None":
    """The sum of all LoRA files on the model's device, as a stack of one; None without any."""
    from lorasynth.adapter import Adapter, map_factors
    from lorasynth.adapter.addition import add
    from lorasynth.base.compatibility import require_made_for

    adapters = []
    for file in files:
        adapter = Adapter.load(file)
        if not allow_other_base:
            require_made_for(model, adapter.metadata.base_fingerprint, f"LoRA file {file}")
        adapters.append(adapter.scaled(strength).to(model.dtype).factors)
    return map_factors(lambda part: part[None], add(adapters)) if adapters else None
