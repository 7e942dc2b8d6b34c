"""LoRA files: seconds to read, convert and import, beside plain safetensors; errors of conversion.

    python bench/files.py                       # 64 files of Stable Diffusion 1, rank 16
    python bench/files.py --files 4 --rank 4    # smoke

`plain` is `safetensors.torch.load_file` and `save_file` of the same files in the same run, which
lie in the page cache.  Rounds of all tasks take turns, and the median of each is taken, so that a
busy machine slows all alike; there, ratios of CPU seconds say most.  lorasynth's writing waits for
the disk, `save_file` does not.  Errors are |ΔW - ΔW'| / |ΔW| of LoHa and LoKr at several ranks of
the LoRA that they become, for random factors of the shapes that LyCORIS trains.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from lorasynth.adapter import Adapter, Factor
from lorasynth.adapter.files import FORMATS, read
from lorasynth.adapter.files.conversion import read_any
from lorasynth.library.foreign import import_folder
from lorasynth.library.w2w import published_layout

MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def stranger(rank: int, seed: int) -> Adapter:
    """An adapter on the modules of weights2weights' adapters."""
    stream = torch.Generator().manual_seed(seed)
    factors = {
        slot.module: Factor(
            torch.randn(rank, slot.in_features, generator=stream),
            torch.randn(slot.out_features, rank, generator=stream),
        )
        for slot in published_layout().slots
    }
    return Adapter(factors).to(torch.float16)


def speeds(count: int, rank: int, rounds: int, workers: int, folder: Path) -> Table:
    paths = [folder / "in" / f"{i}.safetensors" for i in range(count)]
    for seed, path in enumerate(paths):
        stranger(rank, seed).save(path, "kohya")
    other, plain = folder / "out.safetensors", folder / "plain.safetensors"
    library = folder / "library"

    def each(task: Callable[[Path], object]) -> Callable[[], None]:
        return lambda: [task(path) for path in paths] and None

    def imported() -> None:
        shutil.rmtree(library, ignore_errors=True)
        import_folder(folder / "in", library, workers=workers)

    diffusers = FORMATS.get("diffusers")
    tasks: dict[str, Callable[[], None]] = {
        "plain: load": each(load_file),
        "read": each(read),
        "plain: load and save": each(lambda path: save_file(load_file(path), plain)),
        "convert to diffusers": each(lambda path: diffusers.write(read(path).adapter, other)),
        "import": imported,
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            start, cpu = time.perf_counter(), time.process_time()
            task()
            spent[name].append((time.perf_counter() - start, time.process_time() - cpu))
    table = Table(
        "", "files per second", "CPU ms a file", "CPU beside plain load", "beside load and save"
    )
    medians = {
        name: [median(column) for column in zip(*times, strict=True)]
        for name, times in spent.items()
    }
    for name, (wall, cpu) in medians.items():
        beside = (cpu / medians[f"plain: {plain}"][1] for plain in ("load", "load and save"))
        ratios = (f"{ratio:.1f}" for ratio in beside)
        table.add_row(name, f"{count / wall:.1f}", f"{1000 * cpu / count:.1f}", *ratios)
    return table


def errors(folder: Path) -> Table:
    stream = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream)

    kinds = {
        "LoHa of rank 8": {f"hada_w{n}_{x}": numbers(*((1280, 8) if x == "a" else (8, 1280)))
                           for n in (1, 2) for x in "ab"},
        "LoHa of rank 4": {f"hada_w{n}_{x}": numbers(*((1280, 4) if x == "a" else (4, 1280)))
                           for n in (1, 2) for x in "ab"},
        "LoKr, factor 8": {"lokr_w1": numbers(8, 8), "lokr_w2": numbers(160, 160)},
        "LoKr, factor 8, rank 8": {"lokr_w1": numbers(8, 8), "lokr_w2_a": numbers(160, 8),
                                   "lokr_w2_b": numbers(8, 160)},
        "LoKr, both in parts, rank 4": {"lokr_w1_a": numbers(32, 4), "lokr_w1_b": numbers(4, 32),
                                        "lokr_w2_a": numbers(40, 4), "lokr_w2_b": numbers(4, 40)},
    }  # fmt: skip
    ranks = (1, 16, 64, 128, 512, 1280)
    table = Table("relative error at rank", *map(str, ranks))
    for name, parts in kinds.items():
        path = folder / "kind.safetensors"
        save_file({f"{MODULE}.{part}": tensor for part, tensor in parts.items()}, path)
        table.add_row(name, *(f"{read_any(path, rank).error:.2g}" for rank in ranks))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Console().print(
            speeds(options.files, options.rank, options.rounds, options.workers, Path(folder))
        )
        Console().print(errors(Path(folder)))


if __name__ == "__main__":
    main()
