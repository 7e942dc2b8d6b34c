"""`lorasynth recipe`: whole chains from published files to a measured synthesizer."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.compare import Clip
from lorasynth.commands.importing import Published
from lorasynth.commands.options import Base, Device, DType, Settings, load_base, memory_of, override

app = typer.Typer(help="Whole chains, each a resumable run.", no_args_is_help=True)


@app.callback()
def recipe() -> None:
    """Keep the name of the chain on the command line while there is one."""


@app.command()
def w2w(
    source: Published,
    run: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    base: Base,
    encoder: Annotated[
        str, typer.Option(help="Makes the conditions, and measures: a folder or a name.")
    ],
    second: Annotated[
        str | None, typer.Option(help="Another encoder, which only measures.")
    ] = None,
    clip: Clip = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="The subjects' images, a folder each by their ids; without it they are made "
            "with the adapters."
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Run this stage alone.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done, and do nothing.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option(help="What fitting the codec may take, such as 8GB.")
    ] = None,
    dtype: DType = "float32",
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """weights2weights end to end: import, conditions, codec, hypernetwork, files, evaluation.

    Stages whose output is in OUT/out are skipped, so the same command goes on where it was killed,
    and deleting an output makes that stage again.

    Example: lorasynth recipe w2w Snapchat/weights2weights -o runs/w2w --encoder dlib
    --base hub:stable-diffusion-v1-5/stable-diffusion-v1-5 --set codec_options.latents=1000
    """
    from lorasynth.commands.compare import print_table
    from lorasynth.condition import load_encoder
    from lorasynth.core.config import read_json
    from lorasynth.studies.w2w_recipe import W2WConfig, W2WRecipe

    model = load_base(base, device, dtype, None)
    recipe = W2WRecipe(
        source,
        run,
        override(W2WConfig(), settings),
        base=model,
        encoder=load_encoder(encoder, model.device),
        second=None if second is None else load_encoder(second, model.device),
        clip=clip,
        images=images,
        memory=memory_of(memory),
    )
    missing = recipe.stages.missing()
    for name in recipe.stages.makers:
        typer.echo(f"{name:<16}{'to do' if name in missing else 'done'}")
    if plan:
        return
    if only is not None:
        recipe.stages.make(only)
        return
    recipe.stages.make_all()
    evaluation = recipe.stages.path("evaluation")
    print_table(read_json(evaluation / "table.json"))
    typer.echo(f"{evaluation}, {recipe.stages.path('synthesizer')}")
