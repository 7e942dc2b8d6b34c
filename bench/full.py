"""Principal components at full size: 64,974 vectors of 99,648 numbers, 13 GB in fp16.

    python bench/full.py --latents 1000 --memory 8            # minutes
    python bench/full.py --latents 10000 --memory 20          # hours; run again to go on
    python bench/full.py --rows 400 --width 1200 --latents 20 --memory 1     # smoke

The vectors have a power-law spectrum, of which 10,000 components hold 95 % of the variance, and
known components (`synthetic_vectors`), so what is captured is exact.  They are made once, in
`--folder`, where what there is so far is kept too.  `seconds` adds up the runs until their ends or
the last state that they kept.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from rich.console import Console

from lorasynth.codec import PCA, Budget, PCAConfig
from lorasynth.core.atomic import write_json
from lorasynth.core.config import read_json
from lorasynth.library.vectors import VectorFile
from pca import peak_bytes
from synthetic_vectors import SyntheticConfig, SyntheticVectors

SHARES = (0.5, 0.8, 0.9, 0.95)


def spent(times: Path, run: Path) -> float:
    """Seconds of earlier runs; the end of one that was killed is that of its last state."""
    if not times.is_file():
        return 0.0
    noted = read_json(times)
    ends = [noted["begun"], *(path.stat().st_mtime for path in run.rglob("*"))]
    return float(noted["before"] + max(ends) - noted["begun"])


def needed(held: torch.Tensor) -> list[int | None]:
    """How many components hold each share of the variance; None: more than there are.

    Args:
        held: the share that so many components hold together.
    """
    return [int((held < share).sum()) + 1 if float(held[-1]) >= share else None for share in SHARES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64_974)
    parser.add_argument("--width", type=int, default=99_648)
    parser.add_argument("--latents", type=int, default=1000)
    parser.add_argument("--memory", type=float, default=20.0, help="GB for the whole process")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/full"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    truth = SyntheticVectors(SyntheticConfig(rows=options.rows, width=options.width))
    path = options.folder / f"synthetic-{options.rows}-{options.width}.npy"
    if not path.is_file():
        options.folder.mkdir(parents=True, exist_ok=True)
        truth.write(path, "float16")
    name = f"{options.rows}-{options.width}-{options.latents}-{options.memory:g}"
    run, times = options.folder / name, options.folder / f"{name}-times.json"
    told = options.folder / f"{name}.json"
    if told.is_file():
        return Console().print(read_json(told))
    before = spent(times, run)
    begun = time.time()
    write_json(times, {"before": before, "begun": begun})
    budget = Budget(memory=int(options.memory * 1e9), tolerance=options.tolerance, run=run)
    codec = PCA.fit(VectorFile(path), PCAConfig(latents=options.latents), budget)
    seconds, peak = before + time.time() - begun, peak_bytes()
    held = truth.variances.cumsum(0) / truth.variances.sum()
    best = float(held[options.latents - 1])
    basis = torch.linalg.qr(codec.components.T).Q.T
    captured = truth.captured(basis) / float(truth.variances.sum())
    report = {
        "vectors": [options.rows, options.width],
        "latents": options.latents,
        "memory_gb": options.memory,
        "peak_gb": peak * 1e-9,
        "seconds": seconds,
        "captured": captured,
        "best_possible": best,
        "loss": 1 - captured / best,
        "computation": codec.report["computation"],
        "shares": SHARES,
        "components_for_them": needed(torch.tensor(codec.report["explained_variance"])),
        "true_ones": needed(held[: options.latents]),
    }
    write_json(told, report)
    return Console().print(report)


if __name__ == "__main__":
    main()
