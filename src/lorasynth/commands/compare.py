"""`lorasynth compare`: LoRA files of any origin in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorasynth.commands.options import (
    Base,
    Device,
    DType,
    Seed,
    Settings,
    Size,
    load_base,
    override,
)
from lorasynth.core.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from lorasynth.adapter import Adapter
    from lorasynth.evaluation.compare import Contender
    from lorasynth.images import Subject

Clip = Annotated[
    str | None, typer.Option(help="CLIP model that scores prompts: a folder, or hub:owner/name.")
]
Named = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="NAME=PATH",
        help="A contender: a folder with a LoRA for each subject, named after its folder (a file, "
        "or a folder as PEFT and diffusers write it), or one LoRA if there is one subject; may be "
        "repeated.",
    ),
]


def compare(
    subjects: Annotated[
        Path,
        typer.Argument(help="As `lorasynth collect --folder` takes them."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for table and images.")],
    encoder: Annotated[str, typer.Option(help="Encoder that judges: a name or folder.")],
    lora: Named = None,
    synthesizer: Annotated[
        str | None, typer.Option(help="A contender: what it makes of each first image.")
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=STRENGTH", help="LoRA added to every contender; may be repeated."
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    strength: Annotated[list[float] | None, typer.Option(help="May be repeated.")] = None,
    images: Annotated[int, typer.Option(help="Of each prompt.", min=1)] = 4,
    second: Annotated[str | None, typer.Option(help="A second one, trained apart.")] = None,
    clip: Clip = None,
    base: Base = "bundle/base",
    seed: Seed = 0,
    settings: Settings = None,
    dtype: DType = "float32",
    size: Size = None,
    device: Device = "auto",
) -> None:
    """Compare adapters by the images made with them; the base model alone is the first row.

    The first image of each subject is what --synthesizer sees; the others judge.

    Example: lorasynth compare people -o table --encoder bundle/encoders/avatar --lora trained=loras
    --synthesizer bundle/synthesizer --strength 0.5 --strength 1 --strength 1.5
    """
    from lorasynth.condition import load_encoder
    from lorasynth.core.atomic import make_parent
    from lorasynth.evaluation.clip_score import ClipScore
    from lorasynth.evaluation.compare import CompareConfig, Contender, Judges
    from lorasynth.evaluation.compare import compare as run
    from lorasynth.images import subjects_in

    config = replace(override(CompareConfig(), settings), images=images, seed=seed)
    if prompt:
        config = replace(config, prompts=tuple(prompt))
    if strength:
        config = replace(config, strengths=tuple(strength))
    make_parent(out / "table.json")
    model = load_base(base, device, dtype, size)
    source = subjects_in(subjects)
    people = [source.load(name) for name in source.ids]
    besides = [_style(text) for text in style or []]
    contenders = [Contender(name="base model", adapters=None, besides=besides)]
    if not people:
        raise ImageError(f"there must be a subject with images, but {subjects} has none")
    if synthesizer is not None:
        _require_judging(people)
        made = _synthesised(synthesizer, people)
        contenders.append(Contender(name="synthesised", adapters=made, besides=besides))
    contenders += [_named(text, source.ids, besides) for text in lora or []]
    judges = Judges(
        encoder=load_encoder(encoder, model.device),
        second=None if second is None else load_encoder(second, model.device),
        prompts=None if clip is None else ClipScore.load(clip),
    )
    found = run(model, judges, people, contenders, config)
    print_table(found.report)
    found.save(out)
    typer.echo(out / "table.json")


def _require_judging(people: "Sequence[Subject]") -> None:
    """Refuse subjects whose only image would be what is shown and what judges.

    Raises:
        ImageError: names the first.
    """
    for subject in people:
        if len(subject.photos) < 2:
            raise ImageError(
                "a subject needs two images, one that --synthesizer sees and others that judge, "
                f"but {subject.id} has {len(subject.photos)}: add one, or leave --synthesizer out"
            )


def _named(text: str, ids: Sequence[str], besides: "Sequence[Adapter]") -> "Contender":
    """A contender of LoRA files."""
    from lorasynth.adapter import Adapter
    from lorasynth.adapter.files import is_lora
    from lorasynth.core.atomic import as_file_name
    from lorasynth.evaluation.compare import Contender

    name, equals, place = text.partition("=")
    path = Path(place)
    if not equals or not name or not path.exists():
        raise ConfigError(f"--lora must be NAME=PATH of what exists, but is {text!r}")
    if is_lora(path):
        files = dict.fromkeys(ids[:1], path)
    else:
        places = (
            (i, found)
            for i in ids
            for found in (path / f"{as_file_name(i)}.safetensors", path / as_file_name(i))
        )
        files = {i: found for i, found in places if is_lora(found)}
    adapters = {subject: Adapter.load(file) for subject, file in files.items()}
    return Contender(name=name, adapters=adapters, besides=besides)


def _style(text: str) -> "Adapter":
    from lorasynth.adapter import Adapter

    place, _, size = text.rpartition("=")
    try:
        strength = float(size)
    except ValueError as error:
        raise ConfigError(
            f"--style must be PATH=STRENGTH, such as ink.safetensors=0.7, but is {text!r}"
        ) from error
    return Adapter.load(Path(place)).scaled(strength)


def _synthesised(name: str, people: "Sequence[Subject]") -> "dict[str, Adapter]":
    from lorasynth.core.learned import require_unseen
    from lorasynth.synthesizer import Synthesizer

    synthesizer = Synthesizer.from_pretrained(name)
    require_unseen(synthesizer.learned, [one.id for one in people], f"the synthesizer {name}")
    made = synthesizer.many([[one.photos[0]] for one in people])
    return {one.id: adapter for one, adapter in zip(people, made, strict=True)}


def print_table(report: Mapping[str, Any]) -> None:
    """The rows of a comparison on the screen."""
    from rich.console import Console
    from rich.table import Table

    from lorasynth.evaluation.bootstrap import in_words

    rows = report["rows"]
    figures = [name for name, value in rows[0].items() if isinstance(value, dict) and "lo" in value]
    table = Table("contender", "strength", *(name.replace("_", " ") for name in figures))
    for row in rows:
        cells = (in_words(row[name]) for name in figures)
        table.add_row(row["contender"], f"{row['strength']:g}", *cells)
    Console().print(table)
