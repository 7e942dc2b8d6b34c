"""Samples per second of VAE and hypernetwork training beside their floors, in one run.

    python bench/training.py --folder /tmp                        # 99,648 numbers, 512 latents
    python bench/training.py --rows 40 --width 1200 --latents 8 --batch 8   # smoke

Vectors are generated on disk once (`synthetic_vectors.py`; --rows, 0.4 GB for each 1,024) and the
VAE is trained as `lorasynth fit vae` trains what does not fit in memory: rows read in random
order while it computes, AdamW fused, one encoder and one decoder layer.  The hypernetwork is the
default one, trained on as many random latents with one condition of 512 numbers each.

The floor of a step of b vectors of width D with k latents:

- Products, timed alone on the same shapes: encoder D to 2k and decoder k to D, each once forward
  and once for the gradient of its weights, and once more for the decoder's input: 14·b·D·k
  operations for the VAE (183 GFLOP at the default size); 6 times batch times weights for the
  denoiser.
- The optimiser: reads weight, gradient and both moments, writes all but the gradient: 28 bytes a
  weight, at the bandwidth of a copy in this run (4.3 GB for the VAE).

`peak` is the most that the process had after the first step, Python, torch and imports included.
Products, copies and steps take turns, and the best of each is taken, so that other work on the
machine spoils the figures as little as possible; medians are printed beside them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lorasynth.codec import VAE, Scaled, ScaledConfig, VAEConfig
from lorasynth.codec.sources import moments
from lorasynth.codec.vae import _Epochs, _Reader
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.engine.trainer import Loss, Optimisation, Trainer
from lorasynth.hypernet import HypernetConfig, TrainingSet
from lorasynth.hypernet.train import _build, _loss
from lorasynth.library.vectors import VectorFile
from pca import peak_bytes
from synthetic_vectors import SyntheticConfig, SyntheticVectors

CONDITION = 512
#: Bytes that AdamW moves for each weight.
MOVED = 28


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def products(layers: list[nn.Linear], batch: int) -> Callable[[], None]:
    """The matrix products of a training step alone; the first input needs no gradient."""
    shapes = [(layer.in_features, layer.out_features) for layer in layers]
    widest = max(max(shape) for shape in shapes)
    inputs, weights = torch.randn(batch * widest), torch.randn(max(i * o for i, o in shapes))

    def multiply() -> None:
        for number, (inner, outer) in enumerate(shapes):
            x, y = inputs[: batch * inner].view(batch, inner), inputs[: batch * outer]
            y, w = y.view(batch, outer), weights[: inner * outer].view(outer, inner)
            _ = x @ w.T
            _ = y.T @ x
            if number:
                _ = y @ w

    return multiply


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(3))


def steps_of(trainer: Trainer, loss: Loss) -> Iterator[None]:
    trainer.model.train()
    for step in range(trainer.config.steps):
        trainer._step(loss, step)
        yield


def vae_steps(path: Path, options: argparse.Namespace) -> tuple[Iterator[None], VAE]:
    source, here = VectorFile(path), torch.device("cpu")
    config = VAEConfig(latents=options.latents, batch=options.batch)
    codec = VAE.untrained(config, source.width, "cpu")
    found, _ = moments(source, options.batch, Checkpoint(None, {}), here)
    deviation = found.variance.sqrt().float()
    codec.scaled = Scaled.of(ScaledConfig(scale=config.scale), found.mean.float(), deviation)
    take, epochs = _Reader(source, codec.scaled), _Epochs(len(source), config)

    def loss(model: Any, step: int) -> tuple[torch.Tensor, str]:
        x = take(epochs.rows(step), epochs.rows(step + 1))
        terms = model.terms(x, torch.randn(len(x), model.latents))
        return terms.reconstruction + config.beta * terms.divergence, ""

    how = Optimisation(steps=10**6, batch=config.batch, lr=1e-5, warmup=0, ema=0.0)
    trainer = Trainer(codec, how, None, here)
    trainer.autocast = False
    return steps_of(trainer, loss), codec


def hypernet_steps(options: argparse.Namespace) -> tuple[Iterator[None], nn.Module]:
    rows, here = max(options.rows, 2), torch.device("cpu")
    data = TrainingSet(
        latents=torch.randn(rows, options.latents), conditions=torch.randn(rows, 1, CONDITION)
    )
    config = HypernetConfig(optimisation=Optimisation(steps=5000, batch=options.batch, lr=5e-4))
    model = _build(config, data, None)
    trainer = Trainer(model, config.optimisation, None, here)
    trainer.autocast = False
    return steps_of(trainer, partial(_loss, config, data, trainer.processes)), model.denoiser


def measured(
    name: str,
    steps: Iterator[None],
    network: nn.Module,
    first: list[nn.Linear],
    options: argparse.Namespace,
) -> list[str]:
    """A row: the floor of a step, the step itself, and their ratio."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    next(steps)
    peak = peak_bytes()  # before what is only for the floor takes memory
    multiply = products(first, options.batch)
    floors, taken = [], []
    for _ in range(options.steps):
        multiplied, bandwidth = seconds(multiply), copy_rate()
        floors.append((multiplied, MOVED * weights / bandwidth))
        taken.append(min(seconds(lambda: next(steps)) for _ in range(options.repeats)))
    best = min(m for m, _ in floors) + min(o for _, o in floors)
    middle = statistics.median(m + o for m, o in floors)
    operations = sum(2 * options.batch * p.in_features * p.out_features * 3 for p in first)
    operations -= 2 * options.batch * first[0].in_features * first[0].out_features
    return [
        name,
        f"{weights / 1e6:.1f} M",
        f"{operations / min(m for m, _ in floors) / 1e9:.0f}",
        f"{MOVED * weights / min(o for _, o in floors) / 1e9:.1f}",
        f"{1000 * min(m for m, _ in floors):.1f} + {1000 * min(o for _, o in floors):.1f}",
        f"{1000 * min(taken):.1f}",
        f"{options.batch / min(taken):.1f}",
        f"{best / min(taken):.0%}",
        f"{middle / statistics.median(taken):.0%}",
        f"{peak / 1e9:.2f}",
    ]


def linears(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=99_648)
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="windows that are measured")
    parser.add_argument("--repeats", type=int, default=10, help="hypernetwork's steps in each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", choices=["vae", "hypernetwork"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.folder / f"synthetic-{options.rows}-{options.width}.npy"
    if not path.is_file():
        SyntheticVectors(SyntheticConfig(rows=options.rows, width=options.width)).write(path)
    table = Table(
        title=f"{options.rows:,} x {options.width:,}, {options.latents} latents, batches of "
        f"{options.batch}, {options.threads} threads",
    )
    for column in (
        "training",
        "weights",
        "GFLOP/s",
        "copy GB/s",
        "floor ms",
        "step ms",
        "samples/s",
        "floor/step, best",
        "median",
        "peak GB",
    ):
        table.add_column(column, justify="left" if column == "training" else "right")
    if options.only != "vae":
        steps, network = hypernet_steps(options)
        table.add_row(*measured("hypernetwork", steps, network, linears(network), options))
    if options.only != "hypernetwork":
        options.repeats = 1
        steps, codec = vae_steps(path, options)
        table.add_row(*measured("VAE", steps, codec, linears(codec), options))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
