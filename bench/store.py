"""Random batches of a library's vectors, and the pass for their statistics, beside the disk.

    python bench/store.py --folder /tmp                  # 8,192 x 99,648 in fp16: 1.6 GB
    python bench/store.py --rows 300 --width 1000        # smoke

Four readings of one file take turns, and the best of each is told in stored bytes a second: all of
it in order by plain reads of 8 MB, as `dd` does; all rows in a random order by plain reads; that
in batches, as float32, as VAE training reads them; and mean, spread and norms in one pass
(`library.statistics`).

Without --cold the file is in the page cache, as far as there is memory for it.  With --cold the
system is told before each reading to forget it, so that the disk itself is read.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lorasynth.library import streaming_statistics
from lorasynth.library.blocks import read_ahead, read_rows
from lorasynth.library.vectors import VectorFile, write_vectors
from synthetic_vectors import SyntheticConfig, SyntheticVectors

READ = 8 << 20


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_order(path: Path) -> None:
    buffer = bytearray(READ)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def in_rows(path: Path, row_bytes: int) -> None:
    """All rows in a random order, by as many threads as `read_rows` has."""
    order = torch.randperm(path.stat().st_size // row_bytes)

    def read(rows: torch.Tensor) -> None:
        buffer = bytearray(row_bytes)
        with path.open("rb", buffering=0) as file:
            for row in rows.tolist():
                file.seek(row * row_bytes)
                file.readinto(buffer)

    with ThreadPoolExecutor(2) as readers:
        list(readers.map(read, order.tensor_split(2)))


def in_batches(path: Path, batch: int) -> None:
    source = VectorFile(path)
    buffers = torch.empty(2, batch, source.width)
    groups = torch.randperm(len(source)).split(batch)

    def read(number: int) -> torch.Tensor:
        rows = groups[number]
        read_rows(source, rows, buffers[number % 2, : len(rows)])
        return buffers[number % 2]

    for _ in read_ahead(len(groups), read):
        pass


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def made(options: argparse.Namespace) -> Path:
    """The file, in fp16; a few rows again and again, since only its bytes matter."""
    path: Path = options.folder / f"store-{options.rows}-{options.width}.npy"
    if not path.is_file():
        config = SyntheticConfig(rows=256, width=options.width)
        some = SyntheticVectors(config).rows(0, 256).half()
        write_vectors(path, some.repeat(-(-options.rows // 256), 1)[: options.rows])
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--width", type=int, default=99_648)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cold", action="store_true", help="read the disk, not the page cache")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = made(options)
    readings = {
        "in order, as dd": lambda: in_order(path),
        "random rows": lambda: in_rows(path, 2 * options.width),
        f"random batches of {options.batch}": lambda: in_batches(path, options.batch),
        "statistics": lambda: streaming_statistics(VectorFile(path)),
    }
    taken: dict[str, list[float]] = {name: [] for name in readings}
    for _ in range(options.turns):
        for name, task in readings.items():
            if options.cold:
                forget(path)
            taken[name].append(seconds(task))
    size, first = path.stat().st_size, min(taken["in order, as dd"])
    where = "the disk" if options.cold else "the page cache"
    table = Table("reading", "s", "GB/s", "of dd", title=f"{size / 1e9:.2f} GB from {where}")
    for name, times in taken.items():
        best = min(times)
        table.add_row(name, f"{best:.2f}", f"{size / best / 1e9:.2f}", f"{first / best:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
