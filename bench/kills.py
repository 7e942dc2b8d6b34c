"""Kills PCA, VAE and hypernetwork training at random moments, and compares what they end with.

    python bench/kills.py                                      # 20 kills of each
    python bench/kills.py --kills 1 --rows 200 --width 500     # smoke

Each computes in a process of its own, out of core or streamed, and saves as often as it can.  A
process is killed by SIGKILL at a random moment after the first checkpoint that it wrote itself, so
every kill falls into new work.  One that ends before it was killed often enough begins anew.  All
files of each result must equal those of an undisturbed run.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lorasynth.codec import PCA, VAE, Budget, PCAConfig, VAEConfig, plan
from lorasynth.codec import pca as pca_module
from lorasynth.codec import vae as vae_module
from lorasynth.core.weights import write_weights
from lorasynth.hypernet import HypernetConfig, TrainingSet
from lorasynth.hypernet.train import train
from lorasynth.library.vectors import VectorFile
from synthetic_vectors import SyntheticConfig, SyntheticVectors

MEMORY = 4 * 10**9
LATENTS = 32


def kill_after_checkpoint(command: Sequence[str], run: Path, delay: float) -> bool:
    """Run a command until `delay` seconds after a new checkpoint in `run`, then kill it.

    Returns:
        Whether it was killed, not ended by itself.
    """
    before = newest(run)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        while process.poll() is None and newest(run) == before:
            time.sleep(0.002)
        time.sleep(delay)
        killed = process.poll() is None
        process.kill()
    return killed


def newest(run: Path) -> int:
    """When the last checkpoint was written; 0 for none."""
    times = [0]
    for path in run.glob("[!.]*.safetensors"):
        with suppress(FileNotFoundError):  # deleted in between
            times.append(path.stat().st_mtime_ns)
    return max(times)


def budget(run: Path) -> Budget:
    return Budget(memory=MEMORY, run=run, checkpoint_seconds=0.0)


def pca(vectors: Path, run: Path, out: Path) -> None:
    pca_module.make_plan = plan._krylov  # as if there were no memory for the exact way
    PCA.fit(VectorFile(vectors), PCAConfig(latents=LATENTS), budget(run)).save(out)


def vae(vectors: Path, run: Path, out: Path) -> None:
    vae_module._choose = lambda *_sizes: "source"  # as if they did not fit
    config = VAEConfig(latents=LATENTS, epochs=4, patience=4, batch=64)
    VAE.fit(VectorFile(vectors), config, budget(run)).save(out)


def hypernet(vectors: Path, run: Path, out: Path) -> None:
    latents = VectorFile(vectors).all_vectors()[:, :LATENTS].contiguous()
    data = TrainingSet(latents=latents, conditions=latents[:, None, :8].contiguous())
    config = HypernetConfig(record_every=10)
    brief = replace(config.optimisation, steps=60, checkpoint_seconds=0.0)
    model = train(
        data, replace(config, optimisation=brief), checkpoint=run / "hypernet.safetensors"
    )
    write_weights(out / "hypernet.safetensors", model.state_dict())


JOBS: dict[str, Callable[[Path, Path, Path], None]] = {
    "pca": pca,
    "vae": vae,
    "hypernet": hypernet,
}


def command(job: str, vectors: Path, run: Path, out: Path) -> list[str]:
    return [sys.executable, __file__, "--job", job, *map(str, (vectors, run, out))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_often(job: str, vectors: Path, folder: Path, kills: int, longest: float) -> list[str]:
    """Kill a job so many times; a row of the table."""
    expected, found, run = folder / "undisturbed", folder / "killed", folder / "run"
    start = time.perf_counter()
    subprocess.run(command(job, vectors, folder / "other run", expected), check=True)
    undisturbed, chance = time.perf_counter() - start, np.random.default_rng()
    done, results, equal = 0, 0, 0
    while done < kills:
        shutil.rmtree(run, ignore_errors=True)
        again, before = command(job, vectors, run, found), done
        while done < kills and kill_after_checkpoint(again, run, chance.uniform(0, longest)):
            done += 1
        if done == before:
            raise SystemExit(f"{job} ended before it could be killed: ask for more rows")
        subprocess.run(again, check=True)
        results, equal = results + 1, equal + (contents(found) == contents(expected))
    return [job, str(done), f"{undisturbed:.1f}", f"{equal} of {results}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--width", type=int, default=6_000)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds until a kill at most")
    parser.add_argument("--job", nargs=4, metavar=("JOB", "VECTORS", "RUN", "OUT"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.job:
        job, *places = options.job
        JOBS[job](*map(Path, places))
        return
    table = Table("job", "kills", "undisturbed, s", "equal results")
    with tempfile.TemporaryDirectory() as folder:
        vectors = Path(folder) / "vectors.npy"
        SyntheticVectors(SyntheticConfig(rows=options.rows, width=options.width)).write(vectors)
        for job in JOBS:
            (Path(folder) / job).mkdir()
            row = killed_often(job, vectors, Path(folder) / job, options.kills, options.longest)
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
