"""Canonical form beside a copy of the same bytes and the dense SVD of the paper, in one run.

    python bench/canonical.py --adapters 2000 --ranks 1 8 --gauge procrustes

Adapters have the layout of weights2weights on SD 1.5: to_q and to_v of every attention layer, 64
modules, 99,648 numbers at rank 1.  Copying and canonicalising both write to memory that is there
already: new pages cost more than either.  Both take turns and report medians, so that other load
on the machine hits them alike.  The dense SVD is timed once for each shape and scaled up.

The floor, for N numbers in float32 (797 MB at rank 1 and 6.4 GB at rank 8 with 2,000 adapters):

- Bytes over bandwidth.  A copy reads and writes 4·N bytes.  Canonicalising reads them twice, as the
  change of a matrix depends on all of it: 1.5 copies, or 1 where the cache still holds them.
- Operations over peak.  Inner products, overlap with the reference (not for the gauge none) and
  change take 2·r each per number: 6 in all at rank 1, less than a copy takes; 48 at rank 8, those
  of B's inner products in float64 because they square the condition number.  Two cores that
  multiply 8 x 8 x 640 at 65 GFLOP/s in float32, and half of that in float64 or transposed, spend
  1.2 s on 2,000 adapters without the overlaps and 1.8 s with them: 4 and 6 copies at 20 GB/s.
- The r x r problems: N/(r·(in + out)) eigenvalue problems (128,000 here), and as many singular
  value decompositions for procrustes, at 5 and 10 µs each on one core for r = 8: 1 and 2 copies.
  None at rank 1.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table

from lorasynth.adapter import GAUGES, Factors, Layout, canonicalise, choose_reference
from lorasynth.engine.recipe import PRESETS


def w2w_layout(rank: int) -> Layout:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    targets = PRESETS["weights2weights"].targets
    linears = {name: module for name, module in unet.named_modules() if name.endswith(targets)}
    return Layout.from_linears(linears, rank)


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def medians(tasks: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each task; they take turns, and a first round warms up."""
    rounds = [[seconds(task) for task in tasks] for _ in range(repeats + 1)]
    return [statistics.median(taken) for taken in zip(*rounds[1:], strict=True)]


def dense_seconds(layout: Layout) -> float:
    """Seconds per adapter of decomposing each dense ΔW, from one module of each shape."""
    total = 0.0
    for modules in layout.groups():
        slot = next(slot for slot in layout.slots if slot.module == modules[0])
        b, a = torch.randn(slot.out_features, slot.rank), torch.randn(slot.rank, slot.in_features)
        total += len(modules) * seconds(partial(torch.linalg.svd, b @ a, full_matrices=False))
    return total


def measure(layout: Layout, adapters: int, gauges: list[str], repeats: int) -> list[float]:
    """Median seconds of a copy, and of canonicalising with each gauge."""
    raw, canonical = torch.randn(adapters, layout.size), torch.zeros(adapters, layout.size)
    factors, out = layout.unflatten(raw), layout.unflatten(canonical)

    def task(gauge: str, reference: Factors) -> Callable[[], object]:
        return lambda: canonicalise(factors, gauge, reference, out)

    tasks = [task(gauge, choose_reference(factors, gauge)) for gauge in gauges]
    return medians([lambda: canonical.copy_(raw), *tasks], repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=2000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8])
    # shared is for adapters with one A, which these are not
    gauges = [name for name in GAUGES.names() if GAUGES.get(name).balanced]
    parser.add_argument(
        "--gauge", nargs="+", choices=gauges, default=["none", "sign", "procrustes"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    table = Table(title=f"canonical form on cpu, {torch.get_num_threads()} threads, float32")
    for name in ("rank", "gauge", "adapters", "MB", "copy s", "ours s", "ours / copy"):
        table.add_column(name, justify="right")
    for name in ("dense SVD s (scaled up)", "faster"):
        table.add_column(name, justify="right")
    for rank in options.ranks:
        layout = w2w_layout(rank)
        dense = options.adapters * dense_seconds(layout)
        copy, *ours = measure(layout, options.adapters, options.gauge, options.repeats)
        for gauge, taken in zip(options.gauge, ours, strict=True):
            table.add_row(
                str(rank),
                gauge,
                f"{options.adapters:,}",
                f"{4e-6 * options.adapters * layout.size:,.0f}",
                f"{copy:.3f}",
                f"{taken:.3f}",
                f"{taken / copy:.1f}x",
                f"{dense:,.0f}",
                f"{dense / taken:,.0f}x",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
