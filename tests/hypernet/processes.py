"""Trains the toy problem as one of two processes; run by its test under accelerate's launcher.

Usage: -m hypernet.processes FOLDER.  Goes on from FOLDER/begun.safetensors, and writes the curve to
FOLDER/curve.json; then begins again and is stopped, which leaves FOLDER/stopped.safetensors.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from lorasynth.engine.processes import Processes
from lorasynth.hypernet import CleanError, HypernetConfig, LatentDiffusion
from lorasynth.hypernet.probes import gradient_norms
from lorasynth.hypernet.train import train

from . import toy


class StoppedError(Exception):
    pass


def config() -> HypernetConfig:
    plain = toy.config(16, denoiser_options={"modulation": "low_rank"})
    optimisation = replace(plain.optimisation, checkpoint_seconds=0.0, warmup=5)
    return replace(plain, record_every=5, optimisation=optimisation)


def fit(checkpoint: Path | None = None, stop: int = -1) -> LatentDiffusion:
    def stopped(step: int, _model: LatentDiffusion) -> Mapping[str, float]:
        if step == stop:
            raise StoppedError
        return {}

    held_out = toy.conditions(20, seed=60)
    return train(
        toy.data(50),
        config(),
        probes=[CleanError(toy.truth(held_out), held_out), gradient_norms, stopped],
        checkpoint=checkpoint,
        device=torch.device("cpu"),
    )


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    processes = Processes.here(torch.device("cpu"))
    assert processes.count == 2
    model = fit(folder / "begun.safetensors")
    if processes.is_first:
        (folder / "curve.json").write_text(json.dumps(model.history))
    with suppress(StoppedError):
        fit(folder / "stopped.safetensors", stop=15)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
