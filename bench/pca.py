"""Principal components of more vectors than one wants in memory, beside other implementations.

    python bench/pca.py                                          # 8,192 x 99,648, 256 components
    python bench/pca.py --rows 1024 --width 9984 --latents 64    # a minute
    python bench/pca.py --rows 300 --width 600 --latents 16      # smoke

Vectors have a power-law spectrum and known components (`synthetic_vectors`), so the captured
variance is exact, whatever an implementation reports.  They are made once, as an .npy file, and
each implementation runs in a process of its own, where time and peak memory (resident set) are
taken.  Those that want the vectors in memory read the file within the time.  `loss` is the share of
the variance of the true k components that the found ones miss.  `core s` is the time that
processors spent: on a machine with other work it compares better than the time that passed.

scikit-learn is not a dependency: `pip install scikit-learn`, or leave it out by --only.

The floor, for N vectors of width D, k components and products of P operations a second (about 1e11
in float32 on two cores with AVX2 at 2.5 GHz):

- Operations.  Every subspace method applies the covariance to vectors, at 4·N·D for each, and
  needs at least k of them.  How many more for an equal loss is the method's merit.  At k = 256 and
  variances that fall as rank^-1.2, a loss of 1e-3 takes 448 applications in blocks of 32, 510 of 64
  and 620 of 128 by block Krylov, but 1,500 by subspace iteration (`svd_lowrank`, randomised PCA)
  with 10 vectors more than k, which throws away all but its last block.  Ours takes k/4 at a time.
  So 4·N·D·510 = 1.7e12 at the default size, 17 s at P; k applications alone, the floor of any
  method, are half of that.
- Orthogonalisation: 8·D·m² for m vectors in all, 2e11 here: a tenth.
- Bytes.  One pass over the data for each block, 8 and one for mean and variance: 29 GB from the
  page cache (6 s), or from a disk with 1 GB/s in the time of the products, since the next block is
  read while one is multiplied.  Fewer, larger blocks read less and compute more.
- Memory.  The basis: 4·D·m bytes, 0.2 GB, plus two blocks of vectors (0.05 GB each) and what
  Python and torch take (0.35 GB); k components alone are 0.1 GB.  The vectors would be 3.3 GB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorasynth.codec import PCA, Budget, PCAConfig
from lorasynth.library.vectors import VectorFile
from synthetic_vectors import SyntheticConfig, SyntheticVectors

#: An implementation: from the file of vectors and the options to orthonormal components.
Fit = Callable[[Path, argparse.Namespace], Tensor]


def ours(path: Path, options: argparse.Namespace) -> Tensor:
    config = PCAConfig(latents=options.latents)
    with tempfile.TemporaryDirectory(dir=path.parent) as run:
        memory = int(options.memory * 1e9)
        budget = Budget(memory=memory, tolerance=options.tolerance, run=Path(run))
        codec = PCA.fit(VectorFile(path), config, budget)
    print(codec.report["computation"], file=sys.stderr)
    return codec.components


def ours_with_a_quarter(path: Path, options: argparse.Namespace) -> Tensor:
    """With a quarter of the memory that the vectors alone would take, and the program's own."""
    vectors = 4e-9 * options.rows * options.width
    options.memory = max(0.75, 0.5 + vectors / 4)  # less is less than Python and torch take
    return ours(path, options)


def svd_lowrank(path: Path, options: argparse.Namespace) -> Tensor:
    x = torch.from_numpy(np.load(path))
    x -= x.mean(0)
    torch.manual_seed(0)
    _, _, v = torch.svd_lowrank(x, q=options.latents + 10, niter=options.niter)
    return v.T[: options.latents]


def sklearn_randomised(path: Path, options: argparse.Namespace) -> Tensor:
    from sklearn.decomposition import PCA

    pca = PCA(options.latents, svd_solver="randomized", random_state=0, copy=False)
    return torch.from_numpy(pca.fit(np.load(path)).components_)


def sklearn_incremental(path: Path, options: argparse.Namespace) -> Tensor:
    from sklearn.decomposition import IncrementalPCA

    pca = IncrementalPCA(options.latents)
    for block in _batches(path, options):
        pca.partial_fit(block)
    return torch.from_numpy(pca.components_)


def peft_incremental(path: Path, options: argparse.Namespace) -> Tensor:
    from peft.utils.incremental_pca import IncrementalPCA

    pca = IncrementalPCA(options.latents)
    for block in _batches(path, options):
        pca.partial_fit(torch.from_numpy(block))
    return pca.components_


def _batches(path: Path, options: argparse.Namespace):
    """Batches of 2·k vectors, or of what is left: at least k, as both implementations ask for."""
    rows, size = np.load(path, mmap_mode="r"), 2 * options.latents
    for start in range(0, len(rows), size):
        if len(rows) - start >= options.latents:
            yield np.array(rows[start : start + size])


FITS: dict[str, Fit] = {
    "ours": ours,
    "ours, a quarter": ours_with_a_quarter,
    "torch.svd_lowrank": svd_lowrank,
    "scikit-learn randomised": sklearn_randomised,
    "scikit-learn incremental": sklearn_incremental,
    "peft incremental": peft_incremental,
}


def measure(name: str, path: Path, options: argparse.Namespace) -> None:
    """Run one implementation in this process and print what it took as JSON."""
    torch.set_num_threads(options.threads)
    before = peak_bytes()
    start, worked = time.perf_counter(), time.process_time()
    components = FITS[name](path, options)
    taken, worked = time.perf_counter() - start, time.process_time() - worked
    peak = peak_bytes()
    orthonormal = torch.linalg.qr(components.double().T).Q.T
    vectors = SyntheticVectors(SyntheticConfig(rows=options.rows, width=options.width))
    best = float(vectors.variances[: options.latents].sum())
    found = {
        "seconds": taken,
        "core_seconds": worked,
        "peak_gb": peak * 1e-9,
        "own_gb": (peak - before) * 1e-9,
        "loss": 1 - vectors.captured(orthonormal) / best,
    }
    print(json.dumps(found))


def peak_bytes() -> int:
    """The most memory of this process; ru_maxrss would count what its parent had at the fork."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_own_process(name: str, arguments: list[str]) -> dict[str, float] | str:
    command = [sys.executable, __file__, *arguments, "--run", name]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return f"failed with status {done.returncode}"
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--width", type=int, default=99_648)
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--memory", type=float, default=8.0, help="GB that ours may take")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of ours")
    parser.add_argument("--niter", type=int, default=2, help="of svd_lowrank; 2 is its default")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", nargs="+", choices=FITS, default=list(FITS))
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--run", choices=FITS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.folder / f"synthetic-{options.rows}-{options.width}.npy"
    if options.run:
        return measure(options.run, path, options)
    if not path.is_file():
        SyntheticVectors(SyntheticConfig(rows=options.rows, width=options.width)).write(path)
    size = 4e-9 * options.rows * options.width
    table = Table(
        title=f"{options.latents} components of {options.rows:,} x {options.width:,} "
        f"({size:.2f} GB in float32), {options.threads} threads"
    )
    for name in ("implementation", "s", "core s", "peak GB", "beyond imports GB", "loss"):
        table.add_column(name, justify="left" if name == "implementation" else "right")
    results = {}
    for name in options.only:
        if name.startswith("scikit-learn") and not _has("sklearn"):
            results[name] = "not installed: pip install scikit-learn"
        else:
            results[name] = in_own_process(name, sys.argv[1:])
        found = results[name]
        if isinstance(found, str):
            table.add_row(name, found)
        else:
            table.add_row(
                name,
                f"{found['seconds']:.1f}",
                f"{found['core_seconds']:.1f}",
                f"{found['peak_gb']:.2f}",
                f"{found['own_gb']:.2f}",
                f"{found['loss']:.2e}",
            )
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return None


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


if __name__ == "__main__":
    main()
