"""`lorasynth pretrain`: a synthesizer from images alone, before there is a library."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.options import (
    PORTRAIT,
    TRIGGER,
    Base,
    Caption,
    Checkpointing,
    Device,
    DType,
    Preset,
    Run,
    Seed,
    Settings,
    Size,
    Slicing,
    Trigger,
    load_base,
    override,
    preset_of,
)
from lorasynth.commands.subjects import Avatars, Folder, Images, Series, Split, source_of
from lorasynth.commands.synth import Strict

RecipeSettings = Annotated[
    list[str] | None,
    typer.Option("--recipe", metavar="NAME=VALUE", help="Override an option of the recipe."),
]


def pretrain(
    out: Annotated[Path, typer.Option("--out", "-o", help="Synthesizer folder to write.")],
    encoder: Annotated[str, typer.Option(help="Condition encoder: a folder or a name.")],
    folder: Folder = None,
    avatars: Avatars = None,
    split: Split = "train",
    series: Series = "pretraining",
    seed: Seed = 0,
    images: Images = 8,
    caption: Caption = PORTRAIT,
    trigger: Trigger = TRIGGER,
    base: Base = "bundle/base",
    preset: Preset = "ours",
    recipe: RecipeSettings = None,
    run: Run = Path("runs/pretrain"),
    settings: Settings = None,
    dtype: DType = "float32",
    gradient_checkpointing: Checkpointing = False,
    attention_slicing: Slicing = False,
    size: Size = None,
    strict: Strict = False,
    device: Device = "auto",
) -> None:
    """Train a synthesizer through the base model's denoising loss; run again to resume.

    Its adapters are functions of the condition by construction. `collect --anchor` starts a library
    from them; the recipe says what is adapted, and must be the library's.

    Consent: of people only with their consent.

    Example: lorasynth pretrain --avatars 2000 --encoder bundle/encoders/avatar -o pretrained
    --set optimisation.steps=4000
    """
    from lorasynth.condition import load_encoder
    from lorasynth.core.atomic import make_parent
    from lorasynth.core.device import pick_device
    from lorasynth.core.learned import learned_from
    from lorasynth.predict import PredictorTraining, train_predictor
    from lorasynth.predict.tasks import ENCODED
    from lorasynth.synthesizer import Synthesizer

    config = override(PredictorTraining(), [f"optimisation.seed={seed}", *(settings or [])])
    adapted = override(preset_of(preset), [f"seed={seed}", *(recipe or [])])
    embedder = load_encoder(encoder, pick_device(device))
    model = load_base(
        base,
        device,
        dtype,
        size,
        slicing=attention_slicing,
        checkpointing=gradient_checkpointing,
    )
    drawn = {"split": split, "series": series, "seed": seed, "images": images}
    source = source_of(folder, avatars, drawn, model.image_size, caption)
    make_parent(out, run)
    checkpoint = run / "pretrain.safetensors"
    made = train_predictor(model, embedder, source, adapted, config, checkpoint, strict=strict)
    parts = (model, made.layout, embedder, made.hypernet, made.codec)
    made_of = Synthesizer.of(*parts, trigger_phrase=trigger)
    replace(made_of, learned=learned_from(made.ids)).save(out)
    left_out = len(source.ids) - len(made.ids)
    why = f", {left_out} left out ({run / ENCODED}.failures.json)" if left_out else ""
    typer.echo(f"{out}: trained on {len(made.ids)} subjects{why}")
