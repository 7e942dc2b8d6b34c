"""`lorasynth fine-tune` and `ip-adapter`: the families that LoRA and this system stand beside."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.optimise import Steps
from lorasynth.commands.options import (
    PORTRAIT,
    Base,
    Caption,
    Device,
    Run,
    Seed,
    Settings,
    override,
)
from lorasynth.commands.subjects import Avatars, Folder, Images, Series, Split, source_of
from lorasynth.commands.synth import Photos, subjects_of

app = typer.Typer(
    help="Image-embedding cross-attention, trained once for all subjects; makes no LoRA.",
    no_args_is_help=True,
)
Encoder = Annotated[str, typer.Option(help="Condition encoder: a folder or a name.")]


def fine_tune(
    photos: Photos,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder to write; of several subjects, one in it each."),
    ],
    caption: Caption = PORTRAIT,
    base: Base = "bundle/base",
    steps: Steps = None,
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train all weights of the base model's denoiser on a few images, one subject after another.

    The folder is one that the denoiser's class in diffusers loads: UNet2DConditionModel for Stable
    Diffusion. It is as large as the denoiser itself.

    Consent: of people only with their consent.

    Example: lorasynth fine-tune photo.png -o my-unet --steps 300
    """
    from lorasynth.base import BaseModel
    from lorasynth.condition import framed_subject
    from lorasynth.core.atomic import atomic_directory, make_parent, require_replaceable
    from lorasynth.core.device import pick_device
    from lorasynth.core.progress import progress
    from lorasynth.engine import OptimizerConfig as Descent
    from lorasynth.images.folders import read_subject
    from lorasynth.optimise import fine_tune as train
    from lorasynth.optimise import weights_of

    start = Descent(learning_rate=1e-4)
    stated = [] if steps is None else [f"steps={steps}"]
    config = override(start, [*stated, f"seed={seed}", *(settings or [])])
    found = subjects_of(photos, out, "")
    for path in found:
        make_parent(path)
        require_replaceable(path, ["config.json", "diffusion_pytorch_model*.safetensors*"])
    model = BaseModel.load(base, pick_device(device))
    with progress("fine-tune", len(found)) as advance:
        for path, images in found.items():
            subject = framed_subject(read_subject(None, images, caption), model.image_size)
            weights = train(model, subject, config)
            with weights_of(model, weights), atomic_directory(path) as temporary:
                model.denoiser.register_to_config(_name_or_path=model.name)  # not its local path
                model.denoiser.save_pretrained(temporary)
            advance()
            typer.echo(path)


@app.command("train")
def train_ip_adapter(
    out: Annotated[Path, typer.Option("--out", "-o", help="Safetensors file to write.")],
    encoder: Encoder,
    folder: Folder = None,
    avatars: Avatars = None,
    split: Split = "train",
    series: Series = "ip-adapter",
    seed: Seed = 0,
    images: Images = 8,
    base: Base = "bundle/base",
    run: Run = Path("runs/ip-adapter"),
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Train an IP-Adapter on subjects' images; run again to resume.

    The file is one that load_ip_adapter of diffusers reads; its ip_adapter_image_embeds are the
    encoder's embeddings.

    Example: lorasynth ip-adapter train --avatars 2000 --encoder bundle/encoders/avatar
    -o ip.safetensors
    """
    from lorasynth.base import BaseModel
    from lorasynth.condition import load_encoder
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.device import pick_device
    from lorasynth.studies.ip_adapter import IPAdapterConfig
    from lorasynth.studies.ip_adapter import train_ip_adapter as train

    config = override(IPAdapterConfig(), [f"optimisation.seed={seed}", *(settings or [])])
    where = pick_device(device)
    embedder, model = load_encoder(encoder, where), BaseModel.load(base, where)
    drawn = {"split": split, "series": series, "seed": seed, "images": images}
    source = source_of(folder, avatars, drawn, model.image_size)
    make_parent(out, run)
    train(model, embedder, source, config, run / "ip-adapter.safetensors").save(
        out, embedder.fingerprint
    )
    typer.echo(f"{out}: trained on {len(source.ids)} subjects")


@app.command("images")
def ip_adapter_images(
    photos: Photos,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write: a row for a subject.")],
    adapter: Annotated[Path, typer.Option(help="File that `ip-adapter train` wrote.")],
    encoder: Encoder,
    prompt: Annotated[str, typer.Option(help="Text.")] = PORTRAIT,
    number: Annotated[int, typer.Option("-n", help="Images of each subject.", min=1)] = 4,
    scale: Annotated[float, typer.Option(help="Multiplies what the adapter adds.")] = 1.0,
    base: Base = "bundle/base",
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Make images of subjects with an IP-Adapter.

    Example: lorasynth ip-adapter images me.png --adapter ip.safetensors --encoder
    bundle/encoders/avatar -o me-ip.png
    """
    import torch

    from lorasynth.base import BaseModel, SamplingConfig
    from lorasynth.condition import load_encoder, subject_condition
    from lorasynth.core.device import pick_device
    from lorasynth.core.errors import ConfigError
    from lorasynth.images import read_photo
    from lorasynth.images.png import contact_sheet, write_synthetic
    from lorasynth.studies.ip_adapter import IPAdapter

    where = pick_device(device)
    embedder, model = load_encoder(encoder, where), BaseModel.load(base, where)
    loaded, made_with = IPAdapter.load(adapter, model.denoiser)
    if made_with != embedder.fingerprint:
        raise ConfigError(
            f"an IP-Adapter must see the embeddings that it was trained with, of encoder "
            f"{made_with}, but --encoder is {embedder.fingerprint}: give that one"
        )
    found = subjects_of(photos, out, ".png")
    conditions = torch.stack(
        [
            subject_condition(embedder, [read_photo(p) for p in paths], list(map(str, paths)))
            for paths in found.values()
        ]
    )
    prompts, seeds = [prompt] * number, [*range(seed, seed + number)]
    sampling = SamplingConfig()
    unet, seen, guided = model.denoiser, conditions.to(model.device), sampling.guidance != 1
    with loaded.to(model.device).attached(unet, seen, guided=guided, scale=scale):
        images = model.sample(prompts * len(found), seeds * len(found), config=sampling)
    write_synthetic(out, contact_sheet(images, number), {"Description": prompt})
    typer.echo(out)
