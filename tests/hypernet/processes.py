"""Trains the toy problem as one of two processes; run by its test under accelerate's launcher.

Usage: -m hypernet.processes KIND FOLDER, where KIND is `ddp` or `fsdp2`.  Goes on from
FOLDER/begun.safetensors, and writes the curve to FOLDER/curve.json; then begins again and is
stopped, which leaves FOLDER/stopped.safetensors.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor

from lorasynth.hypernet import CleanError, LatentDiffusion, Prediction
from lorasynth.hypernet.probes import GradientNorms
from lorasynth.hypernet.train import HypernetConfig, train

from . import toy


class StoppedError(Exception):
    pass


def config() -> HypernetConfig:
    """All that is random is in use, and the figures too."""
    plain = toy.config(16, denoiser_options={"dropout": 0.2, "modulation": "low_rank"})
    return replace(
        plain,
        mixing=0.3,
        condition_noise=0.1,
        record_every=5,
        keep_lowest="x0_error",
        optimisation=replace(plain.optimisation, checkpoint_seconds=0.0, warmup=5),
    )


def fit(
    checkpoint: Path | None = None, accelerator: Accelerator | None = None, stop: int = -1
) -> LatentDiffusion:
    def objective(prediction: Prediction) -> Mapping[str, Tensor]:
        if prediction.step == stop:
            raise StoppedError
        return {"size": prediction.x0.square().mean()}

    held_out = toy.conditions(20, seed=60)
    return train(
        toy.data(50),
        config(),
        objectives=[objective],
        probes=[CleanError(toy.truth(held_out), held_out), GradientNorms()],
        checkpoint=checkpoint,
        accelerator=accelerator,
    )


def shard_on_cpus() -> None:
    """Choose FSDP2, which accelerate chooses on GPUs alone."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP


def main() -> None:
    torch.set_num_threads(1)
    kind, folder = sys.argv[1], Path(sys.argv[2])
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    if kind == "fsdp2":
        shard_on_cpus()
    assert accelerator.is_fsdp2 == (kind == "fsdp2")
    model = fit(folder / "begun.safetensors", accelerator)
    if accelerator.is_main_process:
        (folder / "curve.json").write_text(json.dumps(model.history))
    accelerator.free_memory()  # under FSDP2, accelerate clips the gradients of one model alone
    with suppress(StoppedError):
        fit(folder / "stopped.safetensors", accelerator, stop=13)
    accelerator.end_training()


if __name__ == "__main__":
    main()
