"""`lorasynth collect`: train an adapter for each of many subjects."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorasynth.commands.options import (
    PORTRAIT,
    Anchor,
    Base,
    Caption,
    Checkpointing,
    Device,
    DType,
    Preset,
    Seed,
    Settings,
    Size,
    Slicing,
    anchor_of,
    load_base,
    override,
    preset_of,
)
from lorasynth.commands.subjects import Avatars, Folder, Images, Series, Split, source_of
from lorasynth.core.errors import CollectionError, ConfigError

if TYPE_CHECKING:
    from lorasynth.collect.cluster import Cluster
    from lorasynth.collect.spread import Equipment

#: What can train: this process, or the workers of a cluster.
ENGINES = ("here", "ray")

Gauge = Annotated[
    str | None,
    typer.Option(help="Gauge of a new library; default: shared where A is, else procrustes."),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="Also embed the subjects with this condition encoder: a folder, or a name that "
        "`lorasynth conditions` lists."
    ),
]
LeastLikeness = Annotated[
    float | None,
    typer.Option(
        help="Adapters whose samples are less like their subjects, to the encoder, stay out."
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="i/n",
        help="Collect part i of n alone, into OUT/parts; `lorasynth library join OUT` joins them.",
    ),
]
Fleet = Annotated[
    str,
    typer.Option(
        metavar="auto|NUMBER", help="Adapters trained at once; auto: as many as fit into memory."
    ),
]
Attempts = Annotated[
    int,
    typer.Option(
        help="Trainings of an adapter that diverges or is not like enough, each with other random "
        "numbers, before its subject is left out.",
        min=1,
    ),
]
Retry = Annotated[
    bool, typer.Option("--retry-failed", help="Try subjects once more that earlier runs left out.")
]


@dataclass(frozen=True)
class Equip:
    """Loads what training and judging need, here or in a worker."""

    base: str
    device: str
    encoder: str | None
    anchor: str | None
    least_likeness: float | None
    dtype: str = "float32"
    size: int | None = None
    slicing: bool = False
    checkpointing: bool = False

    def anywhere(self) -> "Equip":
        """The same with whole paths, for workers that run in other folders."""
        return replace(
            self,
            base=_whole(self.base),
            encoder=self.encoder and _whole(self.encoder),
            anchor=self.anchor and _whole(self.anchor),
        )

    def __call__(self) -> "Equipment":
        """Load it.

        Raises:
            LorasynthError: a part is damaged, or for another base model, or a gate has no encoder.
        """
        from lorasynth.collect import LikenessGate
        from lorasynth.collect.spread import Equipment
        from lorasynth.condition import load_encoder
        from lorasynth.core.device import pick_device

        on = pick_device("cpu" if self.device == "meta" else self.device)
        embedder = load_encoder(self.encoder, on) if self.encoder else None
        model = load_base(
            self.base,
            self.device,
            self.dtype,
            self.size,
            slicing=self.slicing,
            checkpointing=self.checkpointing,
        )
        gate = None
        if self.least_likeness is not None:
            if embedder is None:
                raise ConfigError("--least-likeness needs an encoder that compares: give --encoder")
            gate = LikenessGate(base=model, encoder=embedder, least=self.least_likeness)
        return Equipment(
            base=model, anchor=anchor_of(self.anchor, model), gate=gate, encoder=embedder
        )


@contextmanager
def _workers(engine: str, address: str) -> Iterator["Cluster | None"]:
    """The cluster that works; None for this process."""
    from lorasynth.collect.cluster import ClusterConfig, connected

    if engine == "here":
        yield None
    else:
        with connected(ClusterConfig(address=address)) as cluster:
            yield cluster


def _whole(name: str) -> str:
    """A name with the whole path of what is on this disk, as in `onnx:FILE`; else as it is."""
    if Path(name).exists():
        return str(Path(name).resolve())
    kind, _, file = name.partition(":")
    return f"{kind}:{Path(file).resolve()}" if file and Path(file).exists() else name


def collect(
    out: Annotated[Path, typer.Option("--out", "-o", help="Library to make or to go on with.")],
    folder: Folder = None,
    avatars: Avatars = None,
    split: Split = "train",
    series: Series = "library",
    seed: Seed = 0,
    images: Images = 10,
    caption: Caption = PORTRAIT,
    base: Base = "bundle/base",
    preset: Preset = "ours",
    settings: Settings = None,
    gauge: Gauge = None,
    encoder: Encoder = None,
    anchor: Anchor = None,
    least_likeness: LeastLikeness = None,
    attempts: Attempts = 2,
    retry_failed: Retry = False,
    fleet: Fleet = "auto",
    dtype: DType = "float32",
    gradient_checkpointing: Checkpointing = False,
    attention_slicing: Slicing = False,
    size: Size = None,
    shard: Shard = None,
    engine: Annotated[
        str, typer.Option(help="What does the work: this process, or the workers of a ray cluster.")
    ] = "here",
    address: Annotated[
        str,
        typer.Option(
            help="Ray cluster: host:port of its head, auto for one that runs on this machine; "
            "local starts one."
        ),
    ] = "local",
    device: Device = "auto",
) -> None:
    """Train an adapter for each subject into a library; run again to resume.

    What failed, and why, is listed in <library>.failures.json.

    Consent: of people only with their consent.

    Example: lorasynth collect --avatars 200 -o library --set rank=4 --set steps=300
    --anchor bundle/pretrained

    On many machines: --shard 1/8 to 8/8, or --engine ray (docs/cluster.md).
    """
    from lorasynth import collect as room
    from lorasynth.collect.collector import require_place
    from lorasynth.collect.embedding import embed_library
    from lorasynth.collect.part import Part, begin_part
    from lorasynth.collect.spread import collect_spread, embed_spread
    from lorasynth.library import Library

    if engine not in ENGINES:
        raise ConfigError(f"--engine must be one of {', '.join(ENGINES)}, but is {engine!r}")
    require_place(out)
    recipe = override(preset_of(preset), [f"seed={seed}", *(settings or [])])
    at_once = None if fleet == "auto" else _number(fleet)
    memory = {"slicing": attention_slicing, "checkpointing": gradient_checkpointing}
    equip = Equip(base, device, encoder, anchor, least_likeness, dtype, size, **memory)
    if engine == "ray":
        equip, folder = equip.anywhere(), folder and folder.resolve()
    here = (equip if engine == "here" else replace(equip, device="meta"))()
    drawn = {"split": split, "series": series, "seed": seed, "images": images}
    source = source_of(folder, avatars, drawn, here.base.image_size, caption)
    if shard is not None:
        source, out = begin_part(source, out, Part.parse(shard))
    options: dict[str, Any] = {"fleet_size": at_once, "gauge": gauge}
    options |= {"attempts": attempts, "retry_failed": retry_failed}
    with _workers(engine, address) as cluster:
        if cluster is None:
            embed = None
            options |= {"anchor": here.anchor, "gate": here.gate, "encoder": here.encoder}
            report = room.collect(here.base, source, out, recipe, **options)
        else:
            embed = embed_spread(cluster, equip, source)
            report = collect_spread(cluster, here, equip, source, out, recipe, **options)
        library, failed = Library.open(out), report.failed
        if failed and not len(library):
            raise CollectionError(
                f"at least one subject must give an adapter, but all {len(failed)} failed, the "
                f"first because: {next(iter(failed.values()))}"
            )
        if here.encoder:
            embed_library(library, source, here.encoder, embed, report.conditions)
    pace = report.seconds / max(len(report.collected), 1)
    typer.echo(
        f"{out}: {len(library)} adapters, {len(report.collected)} of them new "
        f"({pace:.1f} s each), {len(failed)} failed"
    )


def _number(fleet: str) -> int:
    if not fleet.isdecimal() or int(fleet) < 1:
        raise ConfigError(f"--fleet must be auto or a number of at least 1, but is {fleet!r}")
    return int(fleet)
