"""Photo or embedding to file, stage by stage, with a synthesizer that is loaded already.

    python bench/synth.py --photos 50 --batch 1 16                    # the bundle
    python bench/synth.py --width 99648 --latents 512 --batch 1 64    # weights2weights' layout
    python bench/synth.py --width 1557 --latents 8 --photos 4         # smoke
    python bench/synth.py --network klein --rank 6 --latents 128 --batch 1   # 5 million numbers

Each row is the median over calls, and the best, of milliseconds per subject.  `write` makes a
kohya file in --folder, and `flush` is the part of it that waits for the disk; the target is
what remains without it, since no program can hurry a disk.

With --width nothing is read: weights are random, of the default denoiser's shapes, and conditions
are random embeddings of 512 numbers, so reading and embedding a photo are left out.  Widths are
those of weights2weights' layout (64 modules at rank 1) divided by 1, 2, 4, ... 64.

With --network the layout is that of the default targets of a published transformer, by its widths
alone, and the synthesizer is what a predictor of random weights splits into, as after `pretrain`.

The floor is that of the matrix products alone, at the rate that the same shapes have in this run:
the solver's steps through all layers of the denoiser, what serves time and condition once, and
latents times the decoder's matrix.  For one subject at 99,648 numbers and 512 latents these are
memory: 204 MB of decoder (20 ms at 10 GB/s) and 5 MB of denoiser at each of 25 steps, which stay in
a cache of 8 MB if nobody else wants it.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from types import SimpleNamespace

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lorasynth import Synthesizer
from lorasynth.adapter.files import FORMATS, write_many
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.base.families import family_of
from lorasynth.codec import PCA, PCAConfig
from lorasynth.core import atomic
from lorasynth.engine import Recipe
from lorasynth.engine.fleet import start_factors
from lorasynth.engine.plan import TRAINED
from lorasynth.hypernet import (
    LatentDiffusion,
    LatentDiffusionConfig,
    LatentRegression,
    LatentRegressionConfig,
)
from lorasynth.images import to_image
from lorasynth.library.w2w import published_layout
from lorasynth.predict.predictor import Predictor
from lorasynth.synthesizer import Stages

STAGES = ("read", "embed", "sample", "decode", "write", "flush")
CONDITION = 512

#: Pipeline, class of the transformer, and what its published configuration states besides defaults.
NETWORKS = {
    "klein": (
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
    "z-image": ("ZImagePipeline", "ZImageTransformer2DModel", {}),
}


def draw_photos(folder: Path, count: int, size: int) -> list[Path]:
    subjects = AvatarSubjects(split="test", count=count, images=1, size=size, series="bench")
    paths = []
    for name in subjects.ids:
        paths.append(folder / f"{len(paths)}.png")
        to_image(subjects.load(name).images[0]).save(paths[-1])
    return paths


def random_synthesizer(width: int, latents: int, steps: int) -> Synthesizer:
    layout = next(
        found for found in (published_layout(2**power) for power in range(7)) if found.size == width
    )
    torch.manual_seed(0)
    hypernet = LatentDiffusion(LatentDiffusionConfig(steps=steps), latents, CONDITION)
    for parameter in hypernet.parameters():
        nn.init.normal_(parameter, std=0.02)  # what starts at zero would spare products nothing
    codec = PCA(PCAConfig(latents=latents), width, latents)
    codec.components.normal_(std=width**-0.5)
    return Synthesizer(
        base_fingerprint="none",
        base_name="none",
        trigger_phrase="sks",
        layout=layout,
        encoder=SimpleNamespace(width=CONDITION, name="none"),  # type: ignore[arg-type]
        hypernet=hypernet.eval().requires_grad_(False),
        codec=codec,
    )


def split_synthesizer(network: str, rank: int, latents: int) -> Synthesizer:
    """What a predictor of random weights at the widths of a published transformer splits into."""
    pipeline, kind, stated = NETWORKS[network]
    with torch.device("meta"):
        denoiser = getattr(diffusers, kind)(**stated)
    row = family_of(pipeline)
    linears = {
        name: module
        for name, module in sorted(denoiser.named_modules())
        if isinstance(module, nn.Linear) and name.endswith(row.targets)
    }
    torch.manual_seed(0)
    start = start_factors(linears, Recipe(targets=row.targets, rank=rank))
    predictor = Predictor(LatentRegressionConfig(), latents, CONDITION, start)
    written = sum(factor.B.numel() for factor in start.values())
    nn.init.normal_(predictor.directions.weight.requires_grad_(False), std=0.02)
    print(
        f"{network}, rank {rank}: {predictor.layout.size:,} numbers, {written:,} of them in B; "
        f"training keeps {(latents + 1) * written * TRAINED / 1e9:.1f} GB"
    )
    start_time = time.perf_counter()
    regression, codec = predictor.requires_grad_(False).split(torch.randn(512, CONDITION))
    seconds, most = time.perf_counter() - start_time, getrusage(RUSAGE_SELF).ru_maxrss / 1e6
    print(f"split into regression and codec: {seconds:.1f} s, the process at most {most:.1f} GB")
    base = SimpleNamespace(fingerprint="none", name="none")
    encoder = SimpleNamespace(width=CONDITION, name="none")
    return Synthesizer.of(base, predictor.layout, encoder, regression.eval(), codec)  # type: ignore[arg-type]


@contextmanager
def timed_flushes(stages: Stages) -> Iterator[None]:
    flush = os.fsync

    def timed(descriptor: int) -> None:
        with stages.stage("flush"):
            flush(descriptor)

    atomic.os.fsync = timed
    try:
        yield
    finally:
        atomic.os.fsync = flush


def each(stages: Stages, count: int) -> dict[str, float]:
    """Milliseconds of each stage for each of `count`."""
    stages.seconds["write"] -= stages.seconds["flush"]
    return {name: 1000 * taken / count for name, taken in stages.seconds.items()}


def from_photos(synthesizer: Synthesizer, photos: list[Path], folder: Path) -> dict[str, float]:
    stages = Stages()
    paths = [folder / f"{index}.safetensors" for index in range(len(photos))]
    with timed_flushes(stages):
        synthesizer.write([[photo] for photo in photos], paths, stages=stages)
    return each(stages, len(photos))


def from_embeddings(synthesizer: Synthesizer, count: int, folder: Path) -> dict[str, float]:
    stages, names = Stages(), [str(index) for index in range(count)]
    paths = [folder / f"{index}.safetensors" for index in range(count)]
    factors = synthesizer.synthesise(torch.randn(count, CONDITION), names, stages=stages)
    layout, metadata = synthesizer.layout, synthesizer.metadata(0)
    with timed_flushes(stages), stages.stage("write"):
        write_many(FORMATS.get("kohya"), layout.flatten(factors), layout, metadata, paths)
    return each(stages, count)


@torch.no_grad()
def products(synthesizer: Synthesizer, count: int) -> float:
    """Milliseconds for each of `count` that matrix products alone take."""
    if isinstance(synthesizer.hypernet, LatentRegression):
        latents = torch.randn(count, synthesizer.codec.latents)
        start = time.perf_counter()
        latents @ synthesizer.codec.components
        return 1000 * (time.perf_counter() - start) / count
    denoiser, codec = synthesizer.hypernet.denoiser, synthesizer.codec
    steps = synthesizer.hypernet.config.steps
    each_step = [denoiser.enter, denoiser.leave]
    each_step += [layer for block in denoiser.blocks for layer in (block.up, block.down)]
    once = [m for m in denoiser.modules() if isinstance(m, nn.Linear) and m not in each_step]
    inputs = {layer: torch.randn(count, layer.in_features) for layer in each_step}
    several = {layer: torch.randn(steps * count, layer.in_features) for layer in once}
    latents = torch.randn(count, codec.latents)
    start = time.perf_counter()
    for layer in once:
        layer(several[layer])
    for _ in range(steps):
        for layer in each_step:
            layer(inputs[layer])
    latents @ codec.components
    return 1000 * (time.perf_counter() - start) / count


def summary(calls: list[dict[str, float]]) -> list[str]:
    """Median of each stage; of the whole without the flush, median and best; with it, median."""
    medians = [statistics.median(call.get(stage, 0.0) for call in calls) for stage in STAGES]
    whole = [sum(call.values()) for call in calls]
    without = [all_ - call["flush"] for all_, call in zip(whole, calls, strict=True)]
    totals = (statistics.median(without), min(without), statistics.median(whole))
    return [f"{cell:.1f}" for cell in (*medians, *totals)]


def repeated(task: Callable[[int], dict[str, float]], count: int) -> list[dict[str, float]]:
    return [task(index) for index in [0, *range(count)]][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthesizer", type=Path, default=Path("bundle/synthesizer"))
    parser.add_argument("--photos", type=int, default=50, help="photos, or embeddings, in all")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--width", type=int, help="random weights for vectors of this width")
    parser.add_argument("--network", choices=NETWORKS, help="random weights for its widths")
    parser.add_argument("--rank", type=int, default=4, help="with --network")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--steps", type=int, default=25, help="of the solver, with --width")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--processor", action="store_true", help="time of the processor, with --threads 1"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.processor:
        time.perf_counter = time.process_time
    if options.network:
        synthesizer = split_synthesizer(options.network, options.rank, options.latents)
    elif options.width:
        synthesizer = random_synthesizer(options.width, options.latents, options.steps)
    else:
        synthesizer = Synthesizer.from_pretrained(options.synthesizer)
    table = Table("at once", *STAGES, "no flush", "best", "all")
    table.title = f"{torch.get_num_threads()} threads, {synthesizer.layout.size} numbers, ms each"
    drawn = options.width or options.network
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if not drawn:
            photos = draw_photos(folder, options.photos, synthesizer.encoder.image_size)
        for batch in options.batch:
            count = -(-options.photos // batch)
            if drawn:
                calls = repeated(lambda _: from_embeddings(synthesizer, batch, folder), count)  # noqa: B023
                floor = min(products(synthesizer, batch) for _ in range(count + 1))
                made = statistics.median(call["sample"] + call["decode"] for call in calls)
                whole = statistics.median(sum(call.values()) - call["flush"] for call in calls)
                table.caption = (table.caption or "") + (
                    f"{batch} at once: products alone {floor:.1f} ms, {floor / made:.0%} of sample "
                    f"and decode, {floor / whole:.0%} of all but the flush (medians)\n"
                )
            else:
                parts = [photos[i : i + batch] for i in range(0, len(photos), batch)]
                calls = repeated(lambda i: from_photos(synthesizer, parts[i], folder), count)  # noqa: B023
            table.add_row(str(batch), *summary(calls))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
