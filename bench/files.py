"""LoRA files: seconds to read, convert and import, beside plain safetensors; errors of conversion.

    python bench/files.py                       # 64 files of Stable Diffusion 1, rank 16
    python bench/files.py --files 4 --rank 4    # smoke

`plain` is `safetensors.torch.load_file` and `save_file` of the same files, which lie in the page
cache; all writing waits for the disk.  Errors are |ΔW - ΔW'| / |ΔW| of LoHa and LoKr at several
ranks of the LoRA that they become, for random factors of the shapes that LyCORIS trains.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from lorasynth.adapter import Adapter, Factor
from lorasynth.adapter.files import get_format, read
from lorasynth.adapter.files.conversion import read_any
from lorasynth.library.foreign import import_folder
from lorasynth.library.w2w import published_layout

MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def per_second(task: Callable[[Path], object], paths: Sequence[Path]) -> float:
    start = time.perf_counter()
    for path in paths:
        task(path)
    return len(paths) / (time.perf_counter() - start)


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


def speeds(count: int, rank: int, folder: Path) -> Table:
    paths = [folder / "in" / f"{i}.safetensors" for i in range(count)]
    for seed, path in enumerate(paths):
        stranger(rank, seed).save(path, "kohya")
    other, plain = folder / "out.safetensors", folder / "plain.safetensors"
    tasks: dict[str, Callable[[Path], object]] = {
        "plain: load": load_file,
        "read": read,
        "plain: load and save": lambda path: save_file(load_file(path), plain),
        "convert to diffusers": lambda path: get_format("diffusers").write(
            read(path).adapter, other
        ),
    }
    table = Table("", "files per second")
    for name, task in tasks.items():
        task(paths[0])
        table.add_row(name, f"{per_second(task, paths):.1f}")
    start = time.perf_counter()
    import_folder(folder / "in", folder / "library")
    table.add_row("import", f"{count / (time.perf_counter() - start):.1f}")
    return table


def errors(folder: Path) -> Table:
    stream = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream)

    kinds = {
        "LoHa of rank 8": {f"hada_w{n}_{x}": numbers(*((1280, 8) if x == "a" else (8, 1280)))
                           for n in (1, 2) for x in "ab"},
        "LoKr, factor 8": {"lokr_w1": numbers(8, 8), "lokr_w2": numbers(160, 160)},
        "LoKr, factor 8, rank 8": {"lokr_w1": numbers(8, 8), "lokr_w2_a": numbers(160, 8),
                                   "lokr_w2_b": numbers(8, 160)},
    }  # fmt: skip
    ranks = (16, 64, 128, 512, 1280)
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Console().print(speeds(options.files, options.rank, Path(folder)))
        Console().print(errors(Path(folder)))


if __name__ == "__main__":
    main()
