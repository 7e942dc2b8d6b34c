"""How time and memory grow: four short curves with fitted exponents.

    python bench/growth.py --folder /tmp                    # about five minutes
    python bench/growth.py --rows 128 --width 600 --latents 8 --batch 16     # smoke

Principal components by block Krylov (`bench/pca.py`, ours, each in a process of its own) for half,
one, two and four times the vectors N, the width D and the components k around a middle; and a step
of VAE training (`bench/training.py`) for as many latents.  An exponent is the slope of a line
through the logarithms.  Time is that of the processors, which other work on the machine disturbs
least; memory is the peak beyond what Python and torch take.

What is expected: block Krylov applies the covariance about 2 k times at 4·N·D operations each, so
time goes as N·D·k; with few k the passes over the data (reading, mean and variance), which go as
N·D, flatten the exponent of k.  Memory is that of the basis, D·k, beside blocks of vectors that are
bounded, so it does not depend on N.  A VAE's step is 14·b·D·k operations and 84·D·k bytes of AdamW.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import pca
import training
from synthetic_vectors import SyntheticConfig, SyntheticVectors

FACTORS = (0.5, 1, 2, 4)


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of the line through the logarithms, by least squares."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def components(
    rows: int, width: int, latents: int, options: argparse.Namespace
) -> dict[str, float]:
    path = options.folder / f"synthetic-{rows}-{width}.npy"
    if not path.is_file():
        SyntheticVectors(SyntheticConfig(rows=rows, width=width)).write(path)
    sizes = ["--rows", str(rows), "--width", str(width), "--latents", str(latents)]
    places = ["--folder", str(options.folder), "--threads", str(options.threads)]
    found = pca.in_own_process("ours", [*sizes, *places])
    if isinstance(found, str):
        raise SystemExit(f"PCA of {rows} x {width} with {latents} components {found}")
    return found


def step(latents: int, options: argparse.Namespace) -> None:
    """Print what a step of VAE training takes: seconds of the processors, and memory."""
    path = options.folder / f"synthetic-{options.rows}-{options.width}.npy"
    sizes, before = argparse.Namespace(latents=latents, batch=options.batch), pca.peak_bytes()
    steps, _ = training.vae_steps(path, sizes)
    next(steps)
    taken = []
    for _ in range(3):
        start = time.process_time()
        next(steps)
        taken.append(time.process_time() - start)
    print(json.dumps({"core_seconds": min(taken), "own_gb": 1e-9 * (pca.peak_bytes() - before)}))


def step_in_own_process(latents: int) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--step", str(latents)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def row(what: str, sizes: list[int], found: list[dict[str, float]]) -> list[str]:
    cells = [what, " ".join(f"{size:,}" for size in sizes)]
    for figure, digits in (("core_seconds", 2), ("own_gb", 3)):
        values = [one[figure] for one in found]
        cells.append(" ".join(f"{value:.{digits}f}" for value in values))
        cells.append(f"{exponent(sizes, values):.2f}" if min(values) > 0 else "-")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048, help="N in the middle")
    parser.add_argument("--width", type=int, default=6228, help="D in the middle")
    parser.add_argument("--latents", type=int, default=64, help="k in the middle")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--step", type=int, metavar="LATENTS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.step:
        return step(options.step, options)
    middle = {"rows": options.rows, "width": options.width, "latents": options.latents}
    table = Table("what", "sizes", "core s", "exponent", "GB", "exponent")
    for name in middle:
        sizes = [int(middle[name] * factor) for factor in FACTORS]
        found = [components(**(middle | {name: size}), options=options) for size in sizes]
        table.add_row(*row(f"PCA by {name}", sizes, found))
    sizes = [int(middle["latents"] * factor) for factor in FACTORS]
    table.add_row(*row("VAE step by latents", sizes, [step_in_own_process(k) for k in sizes]))
    table.title = f"around {middle}, {options.threads} threads"
    return Console(width=130).print(table)


if __name__ == "__main__":
    main()
