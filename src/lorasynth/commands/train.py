"""`lorasynth fit` and `lorasynth train`: from a library to a synthesizer."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasynth.commands.options import (
    TRIGGER,
    Base,
    Device,
    Run,
    Seed,
    Settings,
    Trigger,
    anchor_of,
    memory_of,
    override,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

Around = Annotated[
    str | None,
    typer.Option(
        "--anchor",
        help="Pretrained synthesizer, whose prediction diffusion is relative to: it then learns "
        "what that misses, and how far that scatters.",
    ),
]
Split = Annotated[
    str, typer.Option(help="Learn from the adapters of this split of the table; all for every one.")
]
Library = Annotated[Path, typer.Argument(help="Library of adapters.", show_default=False)]


def fit(
    codec: Annotated[str, typer.Argument(help="pca, vae or scaled.", show_default=False)],
    library: Library,
    out: Annotated[Path, typer.Option("--out", "-o", help="Codec folder to write.")],
    settings: Settings = None,
    split: Split = "train",
    memory: Annotated[
        str | None,
        typer.Option(
            help="What pca or vae may take, such as 8GB; by default half of the machine's. How it "
            "is computed follows from it."
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Share of what its components could capture that pca may miss where it cannot be "
            "exact.",
            min=1e-6,
        ),
    ] = 1e-3,
    half: Annotated[bool, typer.Option("--half", help="Store the codec's matrices as fp16.")] = (
        False
    ),
    run: Run = Path("runs/fit"),
    device: Device = "auto",
) -> None:
    """Fit a codec, which turns adapters into latents and back, to a library.

    All take any number of adapters; run pca or vae again to go on. pca draws the share of variance
    by number of components beside the codec, as explained_variance.png.

    Example: lorasynth fit pca library -o codec --set latents=128
    """
    from lorasynth.codec import CODECS
    from lorasynth.codec.fitting import fit_into
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.device import pick_device
    from lorasynth.library import Library

    config = override(CODECS.get(codec).config_class(), settings)
    limit = memory_of(memory)
    make_parent(out, run)
    source = Library.open(library).training(split)
    fitted = fit_into(
        out,
        codec,
        source,
        config,
        memory=limit,
        run=run,
        tolerance=tolerance,
        half=half,
        device=pick_device(device),
    )
    typer.echo(f"{out}: {codec}, {fitted.width} numbers to {fitted.latents} latents")


def train(
    library: Library,
    codec: Annotated[Path, typer.Option(help="Codec that was fitted to the library.")],
    encoder: Annotated[
        str, typer.Option(help="Condition encoder that embedded its subjects: a folder or a name.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Synthesizer folder to write.")],
    anchor: Around = None,
    strength: Annotated[
        float, typer.Option(help="Multiplies what the synthesizer's adapters do.")
    ] = 1.0,
    temperature: Annotated[
        float,
        typer.Option(help="Weight of the synthesizer's noise, such as 0.5 for likeness.", min=0),
    ] = 1.0,
    trigger: Trigger = TRIGGER,
    split: Split = "train",
    base: Base = "bundle/base",
    run: Run = Path("runs/train"),
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the hypernetwork on a library and save the synthesizer; run again to resume.

    Under `accelerate launch -m lorasynth train ...` all processes share one batch.

    Example: lorasynth train library --codec codec --encoder bundle/encoders/avatar -o synthesizer
    --set optimisation.steps=2000 --set model.parameterisation=x0
    """
    from lorasynth.base import BaseModel
    from lorasynth.base.compatibility import require_fits, require_made_for
    from lorasynth.codec import load_codec
    from lorasynth.collect.embedding import column_of
    from lorasynth.condition import load_encoder
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.learned import learned_from
    from lorasynth.hypernet import train as training
    from lorasynth.hypernet.library_data import training_set
    from lorasynth.library import Library
    from lorasynth.synthesizer import Synthesizer

    stated = [f"optimisation.seed={seed}", *(settings or [])]
    config = override(training.HypernetConfig(), stated)
    opened, embedder, fitted = Library.open(library), load_encoder(encoder), load_codec(codec)
    adapters = opened.training(split)
    model = BaseModel.load(base, "meta")
    require_made_for(model, opened.info.base_fingerprint, f"library {library}")
    require_fits(model, opened.layout)
    around = anchor_of(anchor, model)
    make_parent(out, run)
    accelerator = _accelerator(device)
    data = training_set(adapters, fitted, column_of(embedder))
    hypernet = training.train(
        data,
        config,
        anchor=None if around is None else around.regression_in(fitted),
        checkpoint=run / "hypernet.safetensors",
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        made = Synthesizer.of(
            model, opened.layout, embedder, hypernet, fitted, trigger_phrase=trigger
        )
        made = replace(made, base_fingerprint=opened.info.base_fingerprint)
        learned = learned_from(adapters.ids) | fitted.learned
        if around is not None:
            learned |= around.learned
        made = replace(made, strength=strength, temperature=temperature, learned=learned)
        made.save(out)
        typer.echo(f"{out}: trained on {len(adapters)} adapters")
    accelerator.end_training()


def _accelerator(device: str) -> "Accelerator":
    """What accelerate computes on; its own choice for `auto`."""
    from accelerate import Accelerator

    from lorasynth.core.device import pick_device
    from lorasynth.hypernet.train import accelerator_on

    return Accelerator() if device == "auto" else accelerator_on(pick_device(device))
